# SPDX-License-Identifier: Apache-2.0
"""A proxy to the DICOMweb store under the server's own origin: OHIF needs neither the store's address nor password.

It replaces MONAI Label's proxy, which drops the query (the study list's filters), sends its own headers, blocks the
whole server while the store answers, and holds every answer in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import requests
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from monailabel.config import settings

from lib.api.ohif.cases import store
from lib.dicom.access import TokenFileError, refusal, tls_refusal
from lib.dicom.web import StoreAccessError
from lib.errors import NotFoundError

TIMEOUT = (5, 300)
"""Seconds to connect, and between two pieces of an answer."""

FORWARDED = ("accept", "content-type", "range")
RETURNED = ("content-type", "content-range", "content-location", "warning", "etag")
PIECE = 1 << 18


async def dicom_web(request: Request, path: str) -> Any:
    """Forward GET and POST to the store; the browser gets 503 and a message if it does not answer.

    A store that does not let this server in is an error of the server, 502: the browser has no password for it.
    """
    studies = settings.MONAI_LABEL_STUDIES.rstrip("/")
    if not studies.startswith(("http://", "https://")):
        raise NotFoundError("this server's studies are a folder; OHIF needs a DICOMweb server (./kprism viewer)")
    body = await request.body() if request.method == "POST" else None
    return await run_in_threadpool(_forward, request, f"{studies}/{_prefix(request.method, path)}{path}", body)


async def stock_dicom_web(request: Request, op: str, path: str) -> Any:
    """The same at the address that the bundled OHIF uses: /proxy/dicom/{wado|qido|stow}/..."""
    return await dicom_web(request, path)


def _prefix(method: str, path: str) -> str:
    """The path of MONAI Label's settings, for stores with different addresses for search, retrieval and storage."""
    if method == "POST":
        prefix = settings.MONAI_LABEL_STOW_PREFIX
    elif "instances/" in path or path.endswith("metadata"):
        prefix = settings.MONAI_LABEL_WADO_PREFIX
    else:
        prefix = settings.MONAI_LABEL_QIDO_PREFIX
    return f"{prefix}/" if prefix else ""


def _forward(request: Request, address: str, body: bytes | None) -> Any:
    headers = {key: request.headers[key] for key in FORWARDED if key in request.headers}
    try:
        answer = store().web.session.request(
            request.method,
            address,
            params=list(request.query_params.multi_items()),
            data=body,
            headers=headers,
            timeout=TIMEOUT,
            stream=True,
        )
    except requests.RequestException as error:
        if what := str(error) if isinstance(error, TokenFileError) else tls_refusal(error):
            return _refused(what)
        return JSONResponse({"detail": "the DICOMweb server does not answer; is it running?"}, 503)
    if what := refusal(answer):
        answer.close()
        return _refused(what)
    kept = {key: answer.headers[key] for key in RETURNED if key in answer.headers}
    return StreamingResponse(_pieces(answer), answer.status_code, kept)


def _refused(what: str) -> JSONResponse:
    return JSONResponse({"detail": f"the DICOMweb server {what}"}, StoreAccessError.status)


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    with answer:
        yield from answer.iter_content(PIECE)
