# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware: a mistake of the server is answered by a 500 with a message that points to the log.

It is inside the layer for pages of other origins, which could not read an answer from outside.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from monailabel.interfaces.utils.app import app_instance
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from lib.datastore import GuardedDatastore
from lib.errors import StudiesAwayError

Message = MutableMapping[str, Any]

FAILED = "the server failed ({}); its log holds the details. Your data are safe"
"""The message, for the kind of the error."""

logger = logging.getLogger(__name__)


class InternalErrors:
    """Logs what no handler knows and answers for it; an answer that has begun is broken off."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Pass a request on, and answer it if that fails."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except ClientDisconnect:
            logger.info("%s %s: the client left before its request was complete", scope["method"], scope["path"])
        except Exception as error:
            if scope["type"] != "http" or has_begun:
                raise
            if away := _studies_away(error):
                logger.warning("%s %s: %s", scope["method"], scope["path"], away)
                await JSONResponse({"detail": str(away)}, away.status)(scope, receive, send)
                return
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await JSONResponse({"detail": FAILED.format(type(error).__name__)}, 500)(scope, receive, send)


def _studies_away(error: Exception) -> StudiesAwayError | None:
    """What is wrong if an error of the disk came because the folder of studies is away; None for other errors."""
    datastore = app_instance().datastore() if isinstance(error, OSError) else None
    if isinstance(datastore, GuardedDatastore):
        try:
            datastore.check_there()
        except StudiesAwayError as away:
            return away
    return None
