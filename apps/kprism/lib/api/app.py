# SPDX-License-Identifier: Apache-2.0
"""How the server differs from MONAI Label's: routes that replace some of its own, and errors with clear messages.

A client's mistake (`RequestError` and MONAI Label's own errors for bad input) is answered by 4xx and a message.
Everything else is a mistake of the server: a 500 with a message that points to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.middleware import Middleware

from lib.api import datastore, hosting, inference, stored_files, task_log, training
from lib.api.inference import read_params
from lib.api.internal_errors import InternalErrors
from lib.api.served import ServedOnly
from lib.api.uploads import UploadLimit
from lib.errors import ForbiddenError, OutOfMemoryError, RequestError

__all__ = ["install", "read_params"]

logger = logging.getLogger(__name__)

MAX_MESSAGE = 1000
"""Characters of an error message; a client's value in it may be of any length."""


def install(
    application: FastAPI,
    upload_limit: int,
    *,
    root_path: str = "",
    allow_origin: Sequence[str] = (),
    worklist: bool = False,
) -> None:
    """Put our routes before MONAI Label's and answer errors with messages; `upload_limit` is in bytes.

    `root_path` and `allow_origin` are the path of a reverse proxy and the origins whose pages may ask, see `hosting`.
    With a `worklist`, images outside are refused.
    """
    router = APIRouter(prefix=settings.MONAI_LABEL_API_STR)
    router.add_api_route("/", api_page, methods=["GET"], include_in_schema=False)
    router.add_api_route("/docs", reference_page, methods=["GET"], include_in_schema=False)
    inference.add_routes(router)
    datastore.add_routes(router)
    stored_files.add_routes(router)
    training.add_routes(router)
    task_log.install()
    for method in ("PUT", "DELETE"):
        router.add_api_route("/model/{model}", refuse_to_change_weights, methods=[method], tags=["Model"])
    application.router.routes[:0] = router.routes
    application.add_exception_handler(RequestError, _answer_request_error)
    application.add_exception_handler(RequestValidationError, _answer_invalid)
    application.add_exception_handler(MONAILabelException, _answer_monailabel_error)
    for error in (MemoryError, torch.OutOfMemoryError):
        application.add_exception_handler(error, _answer_out_of_memory)
    # MONAI Label lets pages of any origin call the server, and its setting against that crashes at the start (0.8.5).
    # Our viewer has the server's own origin and 3D Slicer is not a browser; other pages are allowed by name.
    kept = [layer for layer in application.user_middleware if getattr(layer, "cls", None) is not CORSMiddleware]
    application.user_middleware = [
        Middleware(hosting.RootPath, root_path=root_path),
        Middleware(hosting.HeadRequests),
        *hosting.cross_origin(allow_origin),
        Middleware(InternalErrors),
        Middleware(UploadLimit, limit=upload_limit),
        *([Middleware(ServedOnly)] if worklist else []),
        *kept,
    ]
    application.middleware_stack = None  # built again, with these handlers, at the next request


WITHOUT_SCRIPTS = """<p>K-Prism is running. <a href="kprism/">What the server is doing</a>,
<a href="viewer/">the viewer</a>, <a href="logs/">the log</a>, <a href="openapi.json">the addresses</a>.</p>
<p>The addresses can be tried here where the browser reaches the internet, which has its scripts.</p>"""
"""What is on the page of the addresses until its scripts have come, and where they never do."""


def api_page() -> HTMLResponse:
    """The addresses of the server, to try; MONAI Label's own page finds their description only without a proxy."""
    page = get_swagger_ui_html(openapi_url="openapi.json", title="K-Prism - APIs")
    content = bytes(page.body).decode().replace('<div id="swagger-ui">', f'<div id="swagger-ui">{WITHOUT_SCRIPTS}', 1)
    return HTMLResponse(content)


def reference_page() -> HTMLResponse:
    """The same, to read."""
    return get_redoc_html(openapi_url="openapi.json", title="K-Prism - APIs")


def refuse_to_change_weights(model: str) -> None:
    """MONAI Label's routes would overwrite or remove the weights of all models without any check."""
    raise ForbiddenError(f"the weights of {model!r} cannot be replaced or deleted over HTTP")


def _answer_request_error(request: Request, error: Exception) -> JSONResponse:
    message = str(error)
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]} ..."
    return JSONResponse({"detail": message}, getattr(error, "status", 400))


def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI finds wrong in a request, as a sentence; uploads are not repeated in it."""
    assert isinstance(error, RequestValidationError)
    found = []
    for problem in error.errors()[:3]:
        place, *names = (str(part) for part in problem["loc"])
        where = f"the {'query' if place == 'query' else 'request'}'s {' '.join(names)}" if names else "the request"
        value = problem.get("input")
        got = f" is {value!r:.80}" if isinstance(value, str | int | float) and names else ""
        found.append(f"{where}{got}: {problem['msg'][:200]}")
    return JSONResponse({"detail": "; ".join(found)}, 422)


def _answer_monailabel_error(request: Request, error: Exception) -> JSONResponse:
    message = str(getattr(error, "msg", error))
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return JSONResponse({"detail": message}, 404)
    bad_input = (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)  # the second for unknown names
    if getattr(error, "error", None) in bad_input:
        return JSONResponse({"detail": message}, 400)
    logger.error("%s %s failed: %s", request.method, request.url.path, message, exc_info=error)
    return JSONResponse({"detail": message}, 500)


def _answer_out_of_memory(request: Request, error: Exception) -> JSONResponse:
    logger.error("Too little memory for %s %s", request.method, request.url.path, exc_info=error)
    message = f"too little memory for this request on this machine: {str(error)[:MAX_MESSAGE] or 'none left'}"
    return JSONResponse({"detail": message}, OutOfMemoryError.status)
