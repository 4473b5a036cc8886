# SPDX-License-Identifier: Apache-2.0
"""JSON files, checksums, locks, and temporary files of interrupted writes. `kprism_model.files` writes the files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kprism_model.files import PART, write_bytes


def write_json(path: Path, content: Any) -> None:
    """Write a JSON value to `path` in one step: readers see the old file or the new one."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no file; ValueError names a file with other content."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def is_disk_full(error: OSError) -> bool:
    """Whether something could not be written because the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A lock on `folder` among all processes and threads; it is released even if its holder is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Whether some process or thread holds the lock on `folder`, see `locked`."""
    try:
        with (folder / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def remove_parts(folder: Path, *, age: float = 0.0) -> None:
    """Delete temporary files of interrupted writes that are at least `age` seconds old.

    With age 0, no other process may be writing to the folder.
    """
    for part in folder.glob(f".*{PART}"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime >= age:
                part.unlink()
