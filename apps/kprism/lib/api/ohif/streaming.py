# SPDX-License-Identifier: Apache-2.0
"""Answers while they come: a sequence of messages (see `planes`), each after four bytes, little-endian, of its length.

A message holds a `part`, or is the last one: a `result`, or an `error` of a request that had begun. If the client ends
the request, the work ends with the slice that is being computed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import anyio
import numpy as np
from fastapi.responses import StreamingResponse

from kprism_model.orientation import SliceOrientation
from kprism_model.volumes.slice_map import SliceMap
from lib.api.internal_errors import FAILED
from lib.api.ohif.planes import pack
from lib.errors import RequestError
from lib.imaging.medical_image import planes_of
from lib.infers.parts import Part

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.02
"""How often the event loop looks for a new message."""


class ClientLeftError(Exception):
    """The client has ended the request."""


class QueueListener:
    """Puts parts into a queue as messages, until `left` is set."""

    def __init__(self) -> None:
        self.messages: Queue[bytes | Exception] = Queue()
        self.left = Event()

    def check(self) -> None:
        """ClientLeftError if the client has left."""
        if self.left.is_set():
            raise ClientLeftError

    def part(self, part: Part) -> None:
        """Send a part."""
        about = {"done": part.done, "total": part.total, "names": dict(part.names)}
        self.messages.put(pack({"part": about}, part.labels, part.labels.filled))


def streamed(work: Callable[[QueueListener], bytes]) -> StreamingResponse:
    """The parts and at last the message of `work`, which runs in a thread of its own.

    What it raises before the first part is raised here.
    """
    listener = QueueListener()
    Thread(target=_run, args=(work, listener), name="answer", daemon=True).start()
    first = listener.messages.get()
    if isinstance(first, Exception):
        raise first
    headers = {"X-Accel-Buffering": "no"}  # a reverse proxy would keep the parts until its buffers are full
    return StreamingResponse(_frames(listener, first), headers=headers, media_type="application/octet-stream")


def _run(work: Callable[[QueueListener], bytes], listener: QueueListener) -> None:
    try:
        listener.messages.put(work(listener))
    except ClientLeftError:
        logger.info("A client has ended its request")
    except Exception as error:
        if not isinstance(error, RequestError):
            logger.exception("An answer failed")
        listener.messages.put(error)
    finally:
        listener.messages.put(b"")


async def _frames(listener: QueueListener, first: bytes) -> AsyncIterator[bytes]:
    """Messages with their lengths, up to the empty one."""
    try:
        message: bytes | Exception = first
        while message:
            content = _failure(message) if isinstance(message, Exception) else message
            yield len(content).to_bytes(4, "little") + content
            message = await _next(listener.messages)
    finally:
        listener.left.set()


async def _next(messages: Queue[bytes | Exception]) -> bytes | Exception:
    while True:
        try:
            return messages.get_nowait()
        except Empty:
            await anyio.sleep(POLL_SECONDS)


def _failure(error: Exception) -> bytes:
    """The last message of an answer that failed."""
    known = isinstance(error, RequestError)
    detail = str(error) if known else FAILED.format(type(error).__name__)
    about: dict[str, Any] = {"detail": detail, "status": getattr(error, "status", 500) if known else 500}
    nothing: SliceOrientation = planes_of((1, 1, 1))
    return pack({"error": about}, SliceMap(nothing, np.dtype(np.uint8)), [])
