# SPDX-License-Identifier: Apache-2.0
"""The folder in which a data set is made: beside its place, renamed at the end, removed if anything stops it."""

from __future__ import annotations

import fcntl
import filecmp
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.errors import RequestError

PROVENANCE = "provenance.json"
WRITTEN = "written"
"""Key of `PROVENANCE` that differs between two exports of the same."""

_PREFIX = ".kprism-export-"

_LEFT_OVER_SECONDS = 60.0
"""A folder that is older than this, and that nobody has locked, was left by a kill."""


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new hidden folder in `out`, which is removed at the end; so is `out` if it was made here and stays empty.

    Folders that killed exports have left there are removed too. ValueError if it cannot be made.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = out / f"{_PREFIX}{uuid.uuid4().hex[:12]}"
        folder.mkdir()
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror or error}; expected a folder that can be written to") from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # says that somebody writes to it
        _remove_left_over(out)
        yield folder
    finally:
        os.close(descriptor)
        _remove(folder)
        for empty in made:
            if not any(empty.iterdir()):
                empty.rmdir()


def _remove_left_over(out: Path) -> None:
    for folder in out.glob(f"{_PREFIX}*"):
        if time.time() - folder.stat().st_mtime < _LEFT_OVER_SECONDS:
            continue
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder to which a thread may be writing a last file."""
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def publish(made: Sequence[Path], out: Path) -> list[Path]:
    """Rename the folders `made` into `out`; those that are there already with this content stay.

    Returns the new ones. RequestError, with nothing changed, if another content is there.
    """
    new = []
    for folder in made:
        target = out / folder.name
        if not os.path.lexists(target):
            new.append(folder)
        elif (difference := _difference(folder, target)) is not None:
            raise RequestError(
                f"{target} is there already and differs ({difference}); nothing was changed. Choose another --name or "
                "--id, or remove it"
            )
    for folder in new:
        os.replace(folder, out / folder.name)
    return [out / folder.name for folder in new]


def _difference(one: Path, other: Path) -> str | None:
    """The name of a file that differs between two folders; None if there is none."""
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (one, other)]
    only = sorted({*files[0]} ^ {*files[1]})
    if only or not other.is_dir():
        return str(only[0]) if only else "it is no folder"
    for name in files[0]:
        if (one / name).is_file() and not _is_same(one / name, other / name):
            return str(name)
    return None


def _is_same(one: Path, other: Path) -> bool:
    if one.name != PROVENANCE:
        return filecmp.cmp(one, other, shallow=False)
    contents: list[Any] = [json.loads(path.read_bytes()) for path in (one, other)]
    return all(isinstance(content, dict) for content in contents) and contents[0] == {
        **contents[1],
        WRITTEN: contents[0][WRITTEN],
    }
