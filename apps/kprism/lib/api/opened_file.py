# SPDX-License-Identifier: Apache-2.0
"""A file as an answer: one state of it, even if it is replaced, grows or is removed while it is sent.

FastAPI's FileResponse asks for the size first and opens the file afterwards. A label that is replaced in between is
cut off at the old size, and a log that grows breaks the connection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from fastapi.responses import StreamingResponse
from monailabel.utils.others.generic import get_mime_type

from lib.api.attachments import attachment

PIECE = 4 << 20
"""Bytes that are read and sent at once."""


def opened_file(
    path: Path, *, name: str = "", media_type: str = "", headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """The content of a file as it is now, to save as `name` if there is one; FileNotFoundError if there is no file.

    The type is that of the file's extension unless it is given.
    """
    stream = path.open("rb")
    size = os.fstat(stream.fileno()).st_size
    saved = {"Content-Disposition": attachment(name)} if name else {}
    return StreamingResponse(
        pieces(stream, size),
        headers={"Content-Length": str(size), **saved, **(headers or {})},
        media_type=media_type or get_mime_type(str(path)),
    )


def pieces(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The next `size` bytes of a stream, which is closed at the end; what is written behind them is not read."""
    with stream:
        while size > 0 and (piece := stream.read(min(PIECE, size))):
            size -= len(piece)
            yield piece
