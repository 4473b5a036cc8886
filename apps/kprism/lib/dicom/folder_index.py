# SPDX-License-Identifier: Apache-2.0
"""Which DICOM objects lie in a folder and its subfolders, and what the other files there are.

Headers are read once and noted in a file, so a folder of a hundred thousand files is known again in seconds. A folder
whose time has not changed holds the same names, so mostly the times of folders are compared, not those of files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import NamedTuple

from lib.dicom.dicom_files import DicomObject, NotDicomError, UnusableFileError, read_object
from lib.dicom.index_notes import IndexNotes
from lib.dicom.web import StoreDownError
from lib.imaging.reading import SUFFIXES

logger = logging.getLogger(__name__)

READERS = 2
"""Threads that read headers. One waits for its file on a network drive while the other parses; more would keep the
interpreter from requests."""

CHUNK = 64
"""Files that are read between two looks at whether somebody waits, and between two notes."""

SETTLED_SECONDS = 10.0
"""A file that was changed less long ago may still be written: it is looked at again."""

FULL_SCAN_SECONDS, FULL_SCAN_PAUSE = 60.0, 50.0
"""Seconds between two looks at every file, which finds those that were written over; or this multiple of its time."""

PROGRESS_SECONDS = 5.0

OWN_FILES = ("datastore_v2.json", "labels.json", "dataset.json")
"""Files of a folder of studies that are no studies."""


class Stamp(NamedTuple):
    """Time of the last change (nanoseconds) and size of a file: with the same ones it has the same content."""

    changed: int
    size: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its object, or the `reason` why it has none; an empty reason for what is no DICOM at all."""

    stamp: Stamp
    object: DicomObject | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file in a list: its stamp, and the age in seconds of its last change, also of its name or owner."""

    stamp: Stamp
    age: float


@dataclass
class _Folder:
    """What a folder held: names of files, and whether it may have changed without its time changing."""

    changed: int
    files: set[str] = field(default_factory=set)
    folders: tuple[str, ...] = ()
    is_settled: bool = True


class FolderIndex:
    """The files under `root`, by path relative to it; one thread at a time may `scan`, others may `add`.

    `notes` is the file that keeps what was read, None for no file. Hidden files and folders, and those `without`, are
    left out. Links to folders are followed, each folder once.
    """

    def __init__(self, root: Path, notes: Path | None = None, without: Iterable[Path] = ()) -> None:
        self.root = root
        self._without = {str(path.relative_to(root)) for path in without if path.is_relative_to(root)}
        self.entries: dict[str, Entry] = {}
        self.odd: dict[str, Entry] = {}
        """Those of them without an object."""
        self.images: set[str] = set()
        """Image files of other types, which are not opened here."""
        self.unreadable: dict[str, str] = {}
        """Folders that cannot be listed, with the reason."""
        self.series: dict[str, dict[str, Entry]] = {}
        """Series -> path -> entry."""
        self._changed: dict[str, float] = {}
        self._lock = RLock()
        self.progress: tuple[int, int] | None = None
        """Files that are read and files to read, while many are."""
        self.is_complete = False
        self._folders: dict[str, _Folder] = {}
        self._notes = None if notes is None else IndexNotes(notes)
        self._full_scan_at = -1e9
        self._full_scan_took = 0.0
        self._noted: Mapping[str, Entry] = {} if self._notes is None else self._noted_entries(self._notes)

    @staticmethod
    def _noted_entries(notes: IndexNotes) -> dict[str, Entry]:
        return {path: Entry(Stamp(*stamp), found, reason) for path, stamp, found, reason in notes.read()}

    def restore(self) -> None:
        """Take over what is noted without a look at the folder, for a process beside the server."""
        for path, entry in self._noted.items():
            self._put(path, entry, age=1e9)
        self.is_complete = True

    def take_changed(self) -> dict[str, float]:
        """Series whose files have changed since the last call -> when that was, by `time.monotonic`."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return changed

    def files_of(self, series: str) -> dict[Path, Entry]:
        """The files of a series."""
        with self._lock:
            return {self.root / path: entry for path, entry in self.series.get(series, {}).items()}

    def scan(self) -> Iterator[None]:
        """Bring the index up to date; pauses after each part of the files that are new.

        StoreDownError if the folder cannot be listed, or holds nothing where it held something: it is not mounted.
        """
        begun, before = time.monotonic(), set(self.entries)
        pause = max(FULL_SCAN_SECONDS, FULL_SCAN_PAUSE * self._full_scan_took)
        is_full = begun - self._full_scan_at > pause
        found, seen = self._walk(is_full)
        present = {path for folder in found.values() for path in folder.files}
        if before and not present:
            raise StoreDownError(f"folder {self.root} holds no files any more; is its drive connected?")
        for path in before - present:
            self._remove(path)
        self.images = {path for path in present if path.lower().endswith(SUFFIXES)}
        new = [path for path in seen if path not in self.images and not self._is_known(path, seen[path])]
        yield from self._read_all(sorted(new), seen)
        self._folders, self._noted, self.is_complete = found, {}, True
        if is_full:
            self._full_scan_at, self._full_scan_took = time.monotonic(), time.monotonic() - begun

    def add(self, path: Path) -> None:
        """Take a file over that was just written to a subfolder."""
        stat = path.stat()
        relative = str(path.relative_to(self.root))
        entry = self._entry(relative, Stamp(stat.st_mtime_ns, stat.st_size))
        self._put(relative, entry)
        self._note([(relative, entry)])

    def _is_known(self, path: str, seen: _Seen) -> bool:
        known = self.entries.get(path)
        if known is None and path in self._noted and self._noted[path].stamp == seen.stamp:
            known = self._noted[path]
            self._put(path, known, age=seen.age)
        return known is not None and known.stamp == seen.stamp

    def _walk(self, is_full: bool) -> tuple[dict[str, _Folder], dict[str, _Seen]]:
        """The folders now, and the files in those that may have changed."""
        found: dict[str, _Folder] = {}
        files: dict[str, _Seen] = {}
        waiting, seen = [""], set()
        unreadable = {}
        while waiting:
            name = waiting.pop()
            try:
                stat = (self.root / name).stat()
                if stat.st_ino and (stat.st_dev, stat.st_ino) in seen:
                    continue
                seen.add((stat.st_dev, stat.st_ino))
                known = self._folders.get(name)
                if known is None or is_full or not known.is_settled or known.changed != stat.st_mtime_ns:
                    known = self._list(name, stat.st_mtime_ns, files)
            except OSError as error:
                if not name:
                    raise StoreDownError(f"folder {self.root} cannot be read: {error.strerror or error}") from error
                unreadable[name] = f"cannot be listed: {error.strerror or error}"
                known = self._folders.get(name)  # what was there may come back
                if known is None:
                    continue
            found[name] = known
            waiting += known.folders
        self.unreadable = unreadable
        return found, files

    def _list(self, name: str, changed: int, files: dict[str, _Seen]) -> _Folder:
        """List a folder; its files are added to `files`."""
        folder, now = _Folder(changed), time.time()
        folders = []
        with os.scandir(self.root / name) as found:
            for item in found:
                path = f"{name}/{item.name}" if name else item.name
                if item.name.startswith(".") or path in self._without:
                    continue
                try:
                    if item.is_dir():
                        folders.append(path)
                        continue
                    stat = item.stat()
                except OSError:  # it was just removed, or is a link that leads nowhere
                    continue
                if item.is_file() and (name or item.name not in OWN_FILES):
                    folder.files.add(path)
                    age = now - max(stat.st_mtime, stat.st_ctime)
                    files[path] = _Seen(Stamp(stat.st_mtime_ns, stat.st_size), age)
                    folder.is_settled &= age > SETTLED_SECONDS
        folder.folders = tuple(sorted(folders, reverse=True))
        folder.is_settled &= now - changed / 1e9 > SETTLED_SECONDS
        return folder

    def _read_all(self, paths: list[str], seen: Mapping[str, _Seen]) -> Iterator[None]:
        """Read files by several threads; in parts, because the end of the process waits for those that have begun."""
        if not paths:
            return
        told = time.monotonic()
        self.progress = (0, len(paths))
        try:
            with ThreadPoolExecutor(READERS, "dicom-index") as readers:
                for start in range(0, len(paths), CHUNK):
                    part = paths[start : start + CHUNK]
                    entries = list(readers.map(lambda path: self._entry(path, seen[path].stamp), part))
                    for path, entry in zip(part, entries, strict=True):
                        self._put(path, entry, age=0.0 if self.is_complete else seen[path].age)
                    self._note(zip(part, entries, strict=True))
                    self.progress = (start + len(part), len(paths))
                    if time.monotonic() - told > PROGRESS_SECONDS:
                        told = time.monotonic()
                        logger.info(
                            "%s: %s of %s files are indexed", self.root, f"{self.progress[0]:,}", f"{len(paths):,}"
                        )
                    yield
        finally:
            self.progress = None

    def _entry(self, path: str, stamp: Stamp) -> Entry:
        try:
            return Entry(stamp, read_object(self.root / path))
        except NotDicomError:
            return Entry(stamp)
        except UnusableFileError as error:
            return Entry(stamp, None, str(error))

    def _note(self, read: Iterable[tuple[str, Entry]]) -> None:
        if self._notes is not None:
            self._notes.add((path, entry.stamp, entry.object, entry.reason) for path, entry in read)

    def _put(self, path: str, entry: Entry, age: float = 0.0) -> None:
        """Take over a file whose last change is `age` seconds ago."""
        with self._lock:
            if path in self.entries:
                self._remove(path)
            self.entries[path] = entry
            if entry.object is None:
                self.odd[path] = entry
            else:
                series = entry.object.facts.series
                self.series.setdefault(series, {})[path] = entry
                self._touch(series, age)

    def _remove(self, path: str) -> None:
        with self._lock:
            entry = self.entries.pop(path)
            self.odd.pop(path, None)
            if entry.object is not None:
                series = entry.object.facts.series
                self.series[series].pop(path)
                if not self.series[series]:
                    del self.series[series]
                self._touch(series, 0.0)

    def _touch(self, series: str, age: float) -> None:
        at = time.monotonic() - max(age, 0.0)
        self._changed[series] = max(at, self._changed.get(series, at))
