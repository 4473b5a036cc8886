# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware: requests that open an image outside the work list are refused, whichever route they are for."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from fastapi.concurrency import run_in_threadpool
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance
from starlette.responses import JSONResponse

from lib.errors import RequestError

Message = MutableMapping[str, Any]

_CASE = re.compile(r"/kprism/api/case/([^/]+)")
_NAMED = re.compile(r"/(infer|kprism/api/infer|datastore)(/|$)")
"""Addresses whose query names an image, as `image`, as the `label` of it, or to remove it as `id`."""


def opened_by(path: str, query: str) -> list[str]:
    """The images that a request may open: all that it names, because routes differ in which of several they take."""
    if case := _CASE.match(path):
        return [case[1]]
    if not _NAMED.match(path):
        return []
    named = parse_qs(query)
    return [image for key in ("image", "label", "id") for image in named.get(key, ())]


class ServedOnly:
    """Asks the datastore whether it serves the image, and answers with its sentence if it does not."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Pass a request on, or refuse it."""
        images: list[str] = []
        if scope["type"] == "http":
            path = str(scope["path"]).removeprefix(scope.get("root_path") or "")
            path = path.removeprefix(settings.MONAI_LABEL_API_STR)
            images = opened_by(path, scope.get("query_string", b"").decode("latin-1"))
        try:
            for image in images:
                await run_in_threadpool(app_instance().datastore().check_served, image)
        except RequestError as error:
            await JSONResponse({"detail": str(error)}, error.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)
