# SPDX-License-Identifier: Apache-2.0
"""Files that clients send: no larger than the limit, and kept in a folder that is removed after the request."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lib.errors import RequestError, TooLargeError
from lib.imaging.reading import suffix_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff/\\]")
"""Characters that the name of a file cannot have."""

MAX_SUFFIX = 20
"""Letters of a client's file extension that are kept: none that can be read is longer."""


def store_upload(upload: UploadFile, stem: Path) -> Path:
    """Write an upload to `stem` with the extension of the client's file name."""
    suffix = suffix_of(Path(upload.filename)) if upload.filename else ".nii.gz"
    path = stem.with_name(stem.name + _UNUSABLE.sub("_", suffix)[:MAX_SUFFIX])
    with path.open("wb") as stream:
        shutil.copyfileobj(upload.file, stream)
    return path


def read_object(text: str, what: str) -> dict[str, Any]:
    """A form's JSON object; empty text is an empty object. RequestError, which calls it `what`, for anything else."""
    try:
        content = json.loads(text, object_pairs_hook=_once) if text.strip() else {}
    except _RepeatedKeyError as error:
        raise RequestError(f"{what} holds {error.args[0]!r} twice; expected it once") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{what} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{what} is {text[:80]!r}; expected a JSON object")
    return content


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice: readers would drop the first, such as a structure's first value."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return content


class UploadLimit:
    """ASGI middleware: a request whose body is longer than `limit` bytes is answered by 413 and not stored."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on and count its bytes, because its content-length may be missing or wrong."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"")
        if claimed.isdigit() and int(claimed) > self.limit:
            while (await receive()).get("more_body"):  # a client that is still sending does not read the answer
                pass
            await JSONResponse({"detail": self._sentence}, TooLargeError.status)(scope, receive, send)
            return
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise HTTPException(TooLargeError.status, self._sentence)
            return message

        await self.app(scope, count, send)

    @property
    def _sentence(self) -> str:
        return f"the request is longer than {self.limit / 2**20:,.0f} MiB, this server's limit (--conf image_mb)"
