# SPDX-License-Identifier: Apache-2.0
"""The content of JSON files that other processes may write, read again only if it has changed.

Every file is written under another name and renamed. A file counts as changed if it is another one (its inode), or has
another size or time. File systems round times, so what was written just now is read again in any case.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

_TIME_RESOLUTION_NS = 2_000_000_000  # two changes within this time may give a file or folder the same time

Content = TypeVar("Content")


class ChangedFiles(Generic[Content]):
    """The files `*.json` in a folder, each read with `read`; those that it cannot read (None) are left out."""

    def __init__(self, folder: Path, read: Callable[[Path], Content | None]) -> None:
        self._folder, self._read = folder, read
        self._known: dict[str, tuple[_Stamp, Content | None]] = {}
        self._settled: tuple[int, list[Content]] | None = None  # the folder's time, and what was in it

    def contents(self) -> list[Content]:
        """What the files hold, in the order of their names."""
        changed = self._folder.stat().st_mtime_ns
        settled = self._settled
        if settled is not None and settled[0] == changed:
            return list(settled[1])
        before = self._known
        self._known = known = {name: self._look(name, stamp, before.get(name)) for name, stamp in self._stamps()}
        contents = [content for _, content in known.values() if content is not None]
        self._settled = (changed, contents) if _is_old(changed) else None
        return list(contents)

    def _stamps(self) -> list[tuple[str, _Stamp]]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    try:
                        found.append((entry.name, _stamp(entry.stat())))
                    except FileNotFoundError:  # it was removed just now
                        continue
        return sorted(found)

    def _look(self, name: str, stamp: _Stamp, known: tuple[_Stamp, Content | None] | None) -> _Known[Content]:
        if known is not None and known[0] == stamp and _is_old(stamp[0]):
            return known
        return stamp, self._read(self._folder / name)


class ChangedFile(Generic[Content]):
    """One file, read with `read`, which also says what a missing file stands for."""

    def __init__(self, path: Path, read: Callable[[Path], Content]) -> None:
        self._path, self._read = path, read
        self._known: tuple[_Stamp, Content] | None = None

    def content(self) -> Content:
        """What the file holds."""
        try:
            stamp = _stamp(self._path.stat())
        except FileNotFoundError:
            return self._read(self._path)
        known = self._known
        if known is not None and known[0] == stamp and _is_old(stamp[0]):
            return known[1]
        content = self._read(self._path)
        self._known = stamp, content
        return content


_Stamp = tuple[int, int, int]
_Known = tuple[_Stamp, Content | None]


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _is_old(time_ns: int) -> bool:
    return time.time_ns() - time_ns > _TIME_RESOLUTION_NS
