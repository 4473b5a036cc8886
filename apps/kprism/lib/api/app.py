# SPDX-License-Identifier: Apache-2.0
"""What the server does otherwise than MONAI Label's: routes put before its own, and errors answered with sentences.

A client's mistake (`RequestError` and MONAI Label's own refusals) is a 4xx with a sentence. Everything else is a
mistake of the server: a 500 with a sentence that leads to the entry in the log.
"""

from __future__ import annotations

import logging

import torch
from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from starlette.middleware import Middleware

from lib.api import datastore, inference, training
from lib.api.inference import read_params
from lib.api.uploads import UploadLimit
from lib.errors import ForbiddenError, OutOfMemoryError, RequestError

__all__ = ["install", "read_params"]

logger = logging.getLogger(__name__)

LONGEST = 1000
"""Characters of a message; a client's value in it may be of any length."""


def install(application: FastAPI, upload_limit: int) -> None:
    """Put our routes before MONAI Label's and have errors answered with sentences; `upload_limit` is in bytes."""
    router = APIRouter(prefix=settings.MONAI_LABEL_API_STR)
    inference.add_routes(router)
    datastore.add_routes(router)
    training.add_routes(router)
    for method in ("PUT", "DELETE"):
        router.add_api_route("/model/{model}", refuse_to_change_weights, methods=[method], tags=["Model"])
    application.router.routes[:0] = router.routes
    application.add_exception_handler(RequestError, _answer_request_error)
    application.add_exception_handler(MONAILabelException, _answer_monailabel_error)
    for lack in (MemoryError, torch.OutOfMemoryError):
        application.add_exception_handler(lack, _answer_lack_of_memory)
    application.add_exception_handler(Exception, _answer_internal_error)
    # MONAI Label lets pages of any origin call the server, and its setting for that ends the start (0.8.5). The viewer
    # is of the server's own origin and 3D Slicer is no browser, so nobody needs it.
    kept = [layer for layer in application.user_middleware if layer.cls is not CORSMiddleware]  # type: ignore[comparison-overlap]
    application.user_middleware = [Middleware(UploadLimit, limit=upload_limit), *kept]
    application.middleware_stack = None  # built again, with these handlers, at the next request


def refuse_to_change_weights(model: str) -> None:
    """MONAI Label's routes would overwrite or remove the weights of all models without looking at them."""
    raise ForbiddenError(f"the weights of {model!r} cannot be replaced or deleted over HTTP")


def _answer_request_error(request: Request, error: Exception) -> JSONResponse:
    sentence = str(error)
    if len(sentence) > LONGEST:
        sentence = f"{sentence[:LONGEST]} ..."
    return JSONResponse({"detail": sentence}, getattr(error, "status", 400))


def _answer_monailabel_error(request: Request, error: Exception) -> JSONResponse:
    sentence = str(getattr(error, "msg", error))
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return JSONResponse({"detail": sentence}, 404)
    refused = (MONAILabelError.INVALID_INPUT, MONAILabelError.APP_INIT_ERROR)  # its word for "there is no such"
    if getattr(error, "error", None) in refused:
        return JSONResponse({"detail": sentence}, 400)
    logger.error("%s %s failed: %s", request.method, request.url.path, sentence, exc_info=error)
    return JSONResponse({"detail": sentence}, 500)


def _answer_lack_of_memory(request: Request, error: Exception) -> JSONResponse:
    logger.error("Too little memory for %s %s", request.method, request.url.path, exc_info=error)
    sentence = f"too little memory for this request on this machine: {str(error)[:LONGEST] or 'none left'}"
    return JSONResponse({"detail": sentence}, OutOfMemoryError.status)


def _answer_internal_error(request: Request, error: Exception) -> JSONResponse:
    """The traceback is logged by the server itself, which gets the error after this answer."""
    logger.error("%s %s failed: %r", request.method, request.url.path, error)
    what = type(error).__name__
    return JSONResponse({"detail": f"the server failed ({what}); its log holds the details. Your data are safe"}, 500)
