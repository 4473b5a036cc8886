# SPDX-License-Identifier: Apache-2.0
"""A proxy to the DICOMweb store under the server's own origin: OHIF needs neither the store's address nor password.

It replaces MONAI Label's proxy, which drops the query (the study list's filters), sends its own headers, blocks the
whole server while the store answers, and holds every answer in memory.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any
from urllib.parse import quote

import requests
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from monailabel.config import settings

from lib.api.ohif.cases import store
from lib.dicom.access import TokenFileError, refusal, tls_refusal
from lib.dicom.web import DicomWeb, SeriesEntry, StoreAccessError
from lib.errors import ForbiddenError, NotFoundError, RequestError

TIMEOUT = (5, 300)
"""Seconds to connect, and between two pieces of an answer."""

FORWARDED = ("accept", "content-type", "range")
RETURNED = ("content-type", "content-range", "content-location", "warning", "etag")
PIECE = 1 << 18

MAX_DIGITS = 16
"""Of a number of studies; Python refuses to read numbers of thousands of digits."""


async def dicom_web(request: Request, path: str) -> Any:
    """Forward GET and POST to the store; the browser gets 503 and a message if it does not answer.

    A store that does not let this server in is an error of the server, 502: the browser has no password for it.
    """
    if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise NotFoundError("this server's studies are a folder; OHIF needs a DICOMweb server (./kprism viewer)")
    if request.method == "GET" and store().worklist is not None:
        return await run_in_threadpool(_limited, request, path)
    body = await request.body() if request.method == "POST" else None
    return await run_in_threadpool(_forward, request, _address(request.method, path), body)


async def stock_dicom_web(request: Request, op: str, path: str) -> Any:
    """The same at the address that the bundled OHIF uses: /proxy/dicom/{wado|qido|stow}/..."""
    return await dicom_web(request, path)


def _address(method: str, path: str) -> str:
    """The address in the store of a path, which is decoded; RequestError for one that leads out of its DICOMweb."""
    parts = path.split("/")
    if {".", ".."} & set(parts):
        raise RequestError(
            f"the path {path!r} leads out of the DICOMweb server; expected one such as studies/UID/series"
        )
    plain = "/".join(quote(part, safe="!$&'()*+,:;=@") for part in parts)
    return f"{settings.MONAI_LABEL_STUDIES.rstrip('/')}/{_prefix(method, path)}{plain}"


def _prefix(method: str, path: str) -> str:
    """The path of MONAI Label's settings, for stores with different addresses for search, retrieval and storage."""
    if method == "POST":
        prefix = settings.MONAI_LABEL_STOW_PREFIX
    elif "instances/" in path or path.endswith("metadata"):
        prefix = settings.MONAI_LABEL_WADO_PREFIX
    else:
        prefix = settings.MONAI_LABEL_QIDO_PREFIX
    return f"{prefix}/" if prefix else ""


def _limited(request: Request, path: str) -> Any:
    """What `_forward` answers, for studies on the work list only; a search leaves out the others."""
    parts = [part for part in path.split("/") if part]  # a store may read studies//UID as studies/UID
    datastore, address = store(), _address(request.method, "/".join(parts))
    first, study = (*parts[:2], "", "")[:2]
    served = datastore.served_studies()
    if study and study not in served and first == "studies":
        source = datastore.worklist.source if datastore.worklist else ""
        raise ForbiddenError(f"study {study} is not on the work list of this server ({source})")
    if study:
        return _forward(request, address, None)
    return _search(request, address, served)


def _search(request: Request, address: str, served: Container[str]) -> Any:
    """A search whose answer holds served studies only, and of those as many as the browser asks for."""
    asked = request.query_params
    start, limit = _number(asked.get("offset"), "offset") or 0, _number(asked.get("limit"), "limit")
    answer = _asked(
        request, address, None, [item for item in asked.multi_items() if item[0] not in ("limit", "offset")]
    )
    if isinstance(answer, Response):
        return answer
    with answer:
        if answer.status_code != 200:
            return Response(answer.content, answer.status_code)
        found = [item for item in answer.json() if SeriesEntry.of(item).study in served]
    end = None if limit is None else start + limit
    return JSONResponse(found[start:end], media_type="application/dicom+json")


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < MAX_DIGITS):
        raise RequestError(f"{name} is {text!r}; expected a whole number from 0")
    return int(text)


def _forward(request: Request, address: str, body: bytes | None) -> Any:
    answer = _asked(request, address, body, list(request.query_params.multi_items()))
    if isinstance(answer, Response):
        return answer
    kept = {key: answer.headers[key] for key in RETURNED if key in answer.headers}
    return StreamingResponse(_pieces(answer), answer.status_code, kept)


def _asked(
    request: Request, address: str, body: bytes | None, params: list[tuple[str, str]]
) -> requests.Response | JSONResponse:
    """The answer of the store, or of the server where the store has none for it."""
    headers = {key: request.headers[key] for key in FORWARDED if key in request.headers}
    web = store().web
    assert isinstance(web, DicomWeb)  # see `dicom_web`
    try:
        answer = web.session.request(
            request.method,
            address,
            params=params,
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
    return answer


def _refused(what: str) -> JSONResponse:
    return JSONResponse({"detail": f"the DICOMweb server {what}"}, StoreAccessError.status)


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    with answer:
        yield from answer.iter_content(PIECE)
