# SPDX-License-Identifier: Apache-2.0
"""Where browsers see the server: under a path of a reverse proxy, and from pages of other origins.

All pages find the server by their own address, so a proxy that takes its path away needs nothing. One that passes the
path on needs `root_path`, which the API's description names too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse

from kprism_model.addresses import ANY_ORIGIN

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

EXPOSED = ("Content-Disposition", "Content-Location", "Content-Range", "ETag", "Retry-After", "Warning")
"""Headers of answers that scripts of other origins may read, beside the few that browsers always show them."""


OWN_HEAD = ("/datastore/image", "/datastore/label")
"""Ends of addresses with a HEAD of their own: MONAI Label's clients ask there whether a file is known."""


def cross_origin(origins: Sequence[str]) -> list[Middleware]:
    """The layer that lets pages of these origins ask the server; none where no origin is allowed.

    Named origins may send cookies and passwords, which a reverse proxy may ask for; with * nobody's are taken.
    """
    if not origins:
        return []
    named = ANY_ORIGIN not in origins
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_credentials=named,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
        )
    ]


class HeadRequests:
    """ASGI middleware: HEAD is answered wherever GET is, with its headers; servers drop the body of the answer.

    Addresses that answer HEAD in their own way, `OWN_HEAD`, are passed on as they are.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["method"] == "HEAD" and not scope["path"].endswith(OWN_HEAD):
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


class RootPath:
    """ASGI middleware: takes requests with and without the path `root_path` of a reverse proxy, "" for none.

    Redirects to the server itself become relative, so they keep the proxy's scheme, host and path.
    """

    def __init__(self, app: Any, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole path, and its answer with a relative redirect."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.root_path and scope["path"] == self.root_path:
            await RedirectResponse(f"./{self.root_path.rpartition('/')[2]}/")(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if location := headers.get("location"):
                    headers["location"] = _relative(location, scope)
            await send(message)

        await self.app(self._whole(scope), receive, answer)

    def _whole(self, scope: Message) -> Message:
        """The request's scope with the proxy's path in `path`, as ASGI wants it, and in `root_path`."""
        if not self.root_path or scope.get("root_path"):
            return scope
        changed = {**scope, "root_path": self.root_path}
        if not scope["path"].startswith(f"{self.root_path}/"):
            changed["path"] = self.root_path + scope["path"]
            changed["raw_path"] = self.root_path.encode() + (scope.get("raw_path") or scope["path"].encode())
        return changed


def _relative(location: str, scope: Message) -> str:
    """A redirect that adds or takes away the slash at the end of an address, relative to that address."""
    asked, target = str(scope["path"]), urlsplit(location)
    if not target.netloc or not unquote(target.path).rstrip("/").endswith(asked.rstrip("/")):
        return location
    last = target.path.rstrip("/").rpartition("/")[2]
    query = f"?{target.query}" if target.query else ""
    return f"../{last}{query}" if asked.endswith("/") else f"./{last}/{query}"
