# SPDX-License-Identifier: Apache-2.0
"""Folders of files for browsers: our mode, the status page."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import HTTPException
from fastapi.responses import FileResponse

APP = Path(__file__).resolve().parents[3]
"""apps/kprism."""

TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".woff2": "font/woff2"}
LONG = "public, max-age=31536000, immutable"
SHORT = "no-cache"
MAX_SHOWN = 200
"""Characters of an address that an answer repeats."""


def serve(folder: Path, path: str, fallback: str | None = None) -> FileResponse:
    """The file at `path`, which must lie in `folder`; the file `fallback` for addresses of pages.

    Browsers keep files whose names contain a digest of their content; they request all others each time.
    """
    root = folder.resolve()
    file = _inside(root, path or "index.html")
    if file is None:
        if fallback is None or Path(path).suffix:
            raise HTTPException(404, f"file {path[:MAX_SHOWN]!r} does not exist")
        file = root / fallback
    kind = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    keep = LONG if ".bundle." in file.name and file.name.count(".") > 2 else SHORT
    return FileResponse(file, media_type=kind, headers={"Cache-Control": keep})


def _inside(root: Path, path: str) -> Path | None:
    """The file at `path` below a folder; None if there is none, also for what no file can be called."""
    try:
        file = (root / path).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        return None


def mode(path: str) -> FileResponse:
    """Our mode's modules."""
    return serve(APP / "viewer", path)


def page(path: str = "") -> FileResponse:
    """The status page."""
    return serve(APP / "page", path)
