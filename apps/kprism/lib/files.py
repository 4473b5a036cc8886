# SPDX-License-Identifier: Apache-2.0
"""JSON files, sums, locks, and what interrupted writes leave behind; how files are written: `kprism_model.files`."""

from __future__ import annotations

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
    """Put a JSON value tree at `path` in one step."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no file; ValueError names a file that holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a JSON object")
    return content


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in `folder` among all processes and threads; the lock goes with its holder, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Whether somebody is alone in `folder` at this moment, see `locked`."""
    try:
        with (folder / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def remove_parts(folder: Path, *, age: float = 0.0) -> None:
    """Delete what interrupted writes have left `age` seconds ago or earlier.

    With age 0 nobody else may be writing there.
    """
    for part in folder.glob(f".*{PART}"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime >= age:
                part.unlink()
