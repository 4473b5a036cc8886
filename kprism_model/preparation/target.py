# SPDX-License-Identifier: Apache-2.0
"""The folder that a data set is prepared in: only one data set, and only one run at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kprism_model.preparation.files import RECORDS_NAME

DATASET_NAME = "dataset.json"
"""File in the folder that describes the data set; while the folder is not whole, there is none."""


@contextmanager
def claimed(out: Path, name: str) -> Iterator[None]:
    """Make the folder `out` that of the data set `name`, and keep other runs off.

    ValueError if it holds something else than this data set, perhaps half prepared, or if another run prepares in it.
    File systems without locks keep nobody off.
    """
    _check(out, name)
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):
            _lock(descriptor, out)
        _check(out, name)
        records = out / RECORDS_NAME
        if not records.exists():  # before all else: a run that is killed at once can be repeated
            records.write_text(json.dumps({"data set": name}) + "\n", encoding="utf-8")
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"--out {out}: another run prepares in this folder; wait for its end") from None


def _check(out: Path, name: str) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / RECORDS_NAME).is_file()):
        raise ValueError(f"--out {out} holds other files, expected an empty folder")
    other = _stated(out)
    if other not in (None, name):
        raise ValueError(f"--out {out} holds the data set {other!r} already, expected an empty folder for {name!r}")


def _stated(out: Path) -> str | None:
    """The data set that is prepared in `out`; None if nothing says so."""
    with suppress(OSError, ValueError, AttributeError):
        if name := json.loads((out / DATASET_NAME).read_text(encoding="utf-8")).get("name"):
            return str(name)
    with suppress(OSError, ValueError, AttributeError, IndexError):
        if name := json.loads((out / RECORDS_NAME).read_text(encoding="utf-8").splitlines()[0]).get("data set"):
            return str(name)
    return None
