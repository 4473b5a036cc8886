# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: a temporary file is written, flushed to disk and renamed, so that no file is ever incomplete."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

PART = ".part"
"""Suffix of temporary files; one that is left over from a killed process can be deleted."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step; if the disk is full, the old file stays."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{PART}")  # short, because the name of `path` may have any length
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
