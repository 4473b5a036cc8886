# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written beside, flushed to the disk, renamed; a kill never halves one."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

PART = ".part"
"""Suffix of files that are being written; one that is left over from a kill can be deleted."""


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step; what was there before stays if the disk is full."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _flush_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
