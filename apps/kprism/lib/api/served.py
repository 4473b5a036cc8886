# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware: requests that open an image outside the work list are refused, whichever route they are for."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from fastapi.concurrency import run_in_threadpool
from monailabel.interfaces.utils.app import app_instance
from starlette.responses import JSONResponse

from lib.errors import RequestError

Message = MutableMapping[str, Any]

_CASE = re.compile(r"/kprism/api/case/([^/]+)")
_NAMED = re.compile(r"/(infer|kprism/api/infer|datastore/image|datastore/label)(/|$)")
"""Addresses whose query names an image, as `image`, as the `label` of it, or to remove it as `id`."""


def opened_by(path: str, query: str) -> str | None:
    """The image that a request opens; None if it opens none."""
    if case := _CASE.match(path):
        return case[1]
    if not _NAMED.match(path):
        return None
    named = parse_qs(query)
    return next((named[key][0] for key in ("image", "label", "id") if key in named), None)


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
        image = None
        if scope["type"] == "http":
            path = str(scope["path"]).removeprefix(scope.get("root_path") or "")
            image = opened_by(path, scope.get("query_string", b"").decode("latin-1"))
        if image is not None:
            try:
                await run_in_threadpool(app_instance().datastore().check_served, image)
            except RequestError as error:
                await JSONResponse({"detail": str(error)}, error.status)(scope, receive, send)
                return
        await self.app(scope, receive, send)
