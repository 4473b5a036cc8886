# SPDX-License-Identifier: Apache-2.0
"""Which segmentation on a DICOMweb server is the label of which series: the newest one that refers to it.

A structure set counts as a segmentation.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from pydicom.dataset import Dataset

from kprism_model.files import write_bytes
from lib.dicom.arrival_times import ArrivalTimes
from lib.dicom.seg_origin import find_series
from lib.dicom.seg_reader import referenced_series
from lib.dicom.source import DicomSource
from lib.dicom.web import SeriesEntry, StoreDownError
from lib.errors import RETRY_SECONDS, is_passing

logger = logging.getLogger(__name__)

TIMES = (
    *(("ContentDate", "ContentTime"), ("StructureSetDate", "StructureSetTime")),
    *(("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime")),
)
"""Attributes for the time of a segmentation's content, the best first."""

HEADER = (
    *("SOPInstanceUID", "ReferencedSeriesSequence", "StudiesContainingOtherReferencedInstancesSequence"),
    "ReferencedFrameOfReferenceSequence",
    *(name for names in TIMES for name in names),
)
"""Attributes that are read: the frames of a large segmentation take a second to parse."""


@dataclass(frozen=True)
class StoredSegmentation:
    """A segmentation on the server, the series that it refers to, and its age, see `ArrivalTimes`."""

    entry: SeriesEntry
    instance: str
    images: tuple[str, ...]
    age: tuple[float, str]


@dataclass(frozen=True)
class UnusableSegmentation:
    """A segmentation on the server that cannot be a label, and why."""

    entry: SeriesEntry
    reason: str


class _Kept(NamedTuple):
    """What the headers of a segmentation say; it never changes."""

    instance: str
    images: tuple[str, ...]
    content_time: str


_READ_PER_WRITE = 500


class SegIndex:
    """Reads each segmentation once, and keeps in the file `path` what it has read; for many threads.

    `images` gives the series that can be labelled. A series that has changed is a new segmentation, see `_key`.
    After an error that may pass, a segmentation is tried again a while later.
    """

    def __init__(
        self, web: DicomSource, arrival_times: ArrivalTimes, images: Callable[[], Collection[str]], path: Path
    ) -> None:
        self._web, self._arrival_times, self._images, self._path = web, arrival_times, images, path
        self._keeping = Lock()
        self._kept = _read_kept(path)
        self._seen: dict[str, StoredSegmentation | None] = {}
        self._unusable: dict[str, UnusableSegmentation] = {}
        self._postponed: dict[str, float] = {}  # when to try again
        self._unresolved: dict[str, tuple[int, str]] = {}  # of which series they are is not known: of how many, why

    def newest(self, entries: Iterable[SeriesEntry]) -> dict[str, StoredSegmentation]:
        """Image -> its newest segmentation; `entries` are all that the server lists now."""
        there = {self._key(entry): entry for entry in entries}
        for gone in set(self._seen) - set(there):
            self._seen.pop(gone, None)
            self._unusable.pop(gone, None)
            self._postponed.pop(gone, None)
            self._unresolved.pop(gone, None)
        self.read(there.values(), are_all=True)
        if self._kept.keys() - there.keys():
            self._keep(there)
        return self._newest()

    def newest_of(self, image_id: str, study: str, entries: Iterable[SeriesEntry]) -> StoredSegmentation | None:
        """The newest segmentation of an image; `entries` are all of one `study` that the server lists now."""
        there = {self._key(entry): entry for entry in entries}
        self.read(there.values())
        found = [
            stored
            for key, stored in list(self._seen.items())
            if stored is not None and (key in there or stored.entry.study != study) and self._is_of(stored, image_id)
        ]
        return max(reversed(found), key=lambda stored: stored.age, default=None)

    def _is_of(self, stored: StoredSegmentation, image_id: str) -> bool:
        """Whether a segmentation is of an image that exists; the others are listed only if it refers to several."""
        if image_id not in stored.images:
            return False
        before = stored.images[: stored.images.index(image_id)]
        if not before:
            return True
        images = self._images()
        return not any(series in images for series in before)

    def read(self, entries: Iterable[SeriesEntry], *, are_all: bool = False) -> None:
        """Read the segmentations that were not read before, or could not be; `are_all`: all that the server has."""
        there = {self._key(entry): entry for entry in entries}
        structure_sets = {key for key, entry in there.items() if entry.modality == "RTSTRUCT"}
        self._arrival_times.note(there.keys() - structure_sets, structure_sets, are_all=are_all)
        now = time.monotonic()
        again = {key for key, due in list(self._postponed.items()) if due <= now and self._seen.get(key) is None}
        again |= self._to_search_again()
        new = [key for key in there if key not in self._seen or key in again]
        try:
            for number, key in enumerate(new, 1):
                self._postponed.pop(key, None)
                known = self._kept.get(key)
                self._seen[key] = self._read(key, there[key]) if known is None else self._stored(key, there[key], known)
                if number % _READ_PER_WRITE == 0:
                    self._keep()
        finally:
            if new:
                self._keep()

    def _to_search_again(self) -> set[str]:
        """Segmentations that name no series of those that were there, if there are others now."""
        if not self._unresolved:
            return set()
        count = len(self._images())
        return {key for key, (before, _) in self._unresolved.items() if before != count}

    def _newest(self) -> dict[str, StoredSegmentation]:
        newest: dict[str, StoredSegmentation] = {}
        images = self._images()
        for key, stored in list(self._seen.items()):
            image_id = self._image_of(key, stored, images) if stored else None
            if stored and image_id and (image_id not in newest or stored.age >= newest[image_id].age):
                newest[image_id] = stored
        return newest

    def add(self, segmentation: Dataset) -> None:
        """Note a segmentation that was just stored on the server, so that it need not be read from there."""
        study, series = str(segmentation.StudyInstanceUID), str(segmentation.SeriesInstanceUID)
        description, patient = (str(segmentation.get(name, "")) for name in ("SeriesDescription", "PatientID"))
        entry = SeriesEntry(study, series, str(segmentation.Modality), description, patient, 1)
        key = self._key(entry)
        self._arrival_times.note([key])
        self._seen[key] = self._stored(key, entry, _said(segmentation))

    def mark_unusable(self, entry: SeriesEntry, error: Exception) -> None:
        """Mark a segmentation as unusable; an older one counts instead, unless the error may pass."""
        key = self._key(entry)
        if is_passing(error):
            self._postponed[key] = time.monotonic() + RETRY_SECONDS
        else:
            self._seen[key] = None
        self._note(entry, f"cannot be used: {_sentence(error)}")

    def is_postponed(self, entry: SeriesEntry) -> bool:
        """Whether an error that may pass has kept a segmentation out a moment ago."""
        return self._postponed.get(self._key(entry), 0.0) > time.monotonic()

    def unusable(self) -> list[UnusableSegmentation]:
        """Segmentations on the server that cannot be used, with the reason."""
        return list(self._unusable.values())

    def _key(self, entry: SeriesEntry) -> str:
        """What a segmentation is known by: another one if it has more instances than before, or its files changed."""
        count = f"({entry.instances})" if entry.instances > 1 else ""
        return " ".join(filter(None, (entry.series, count, self._web.state(entry.series))))

    def _note(self, entry: SeriesEntry, reason: str) -> None:
        self._unusable[self._key(entry)] = UnusableSegmentation(entry, reason)
        logger.warning("Segmentation %s %s", entry.series, reason)

    def _read(self, key: str, entry: SeriesEntry) -> StoredSegmentation | None:
        """The segmentation in a series; None if it cannot be read."""
        try:
            headers = self._web.headers(entry.study, entry.series, HEADER)
            said = _said(max(headers, key=content_time))
            return self._stored(key, entry, said if said.images else self._searched(key, entry, said))
        except StoreDownError:
            raise
        except Exception as error:  # whatever pydicom raises for a malformed one; it must not end the others
            if is_passing(error):
                self._postponed[key] = time.monotonic() + RETRY_SECONDS
            self._note(entry, f"cannot be read: {_sentence(error)}")
            return None

    def _searched(self, key: str, entry: SeriesEntry, said: _Kept) -> _Kept:
        """The same with the series that a segmentation is of, if that can be told without its naming one."""
        found = find_series(self._web, entry, said.instance)
        if found.images:
            self._unresolved.pop(key, None)
            logger.info("Segmentation %s names no series; it is of %s", entry.series, found.images[0])
        else:
            self._unresolved[key] = len(self._images()), found.reason
            self._unusable.pop(key, None)  # the reason may be another one now
        return said._replace(images=found.images)

    def _stored(self, key: str, entry: SeriesEntry, kept: _Kept) -> StoredSegmentation:
        age = (self._arrival_times.time(key), kept.content_time)
        return StoredSegmentation(entry, kept.instance, kept.images, age)

    def _keep(self, there: Container[str] | None = None) -> None:
        """Write what was read, so that the next start need not ask the server for thousands of headers.

        What an earlier run has read stays, unless a listing of all segmentations, `there`, does not name it any more.
        """
        seen = {key: stored for key, stored in list(self._seen.items()) if stored is not None and stored.images}
        read = {key: _Kept(stored.instance, stored.images, stored.age[1]) for key, stored in seen.items()}
        with self._keeping:
            kept = {key: said for key, said in {**self._kept, **read}.items() if there is None or key in there}
            if kept != self._kept:
                self._kept = kept
                write_bytes(self._path, json.dumps(kept).encode())

    def _image_of(self, key: str, stored: StoredSegmentation, images: Container[str]) -> str | None:
        """The image that a segmentation refers to, or None; an image may arrive after its label."""
        image_id = next((series for series in stored.images if series in images), None)
        if image_id is not None:
            if not self.is_postponed(stored.entry):
                self._unusable.pop(key, None)
        elif key not in self._unusable:
            names = ", ".join(stored.images) or "none"
            _, reason = self._unresolved.get(key, (0, f"refers to no image series of this server (it names {names})"))
            self._note(stored.entry, reason)
        return image_id


def _sentence(error: Exception) -> str:
    """What an error says; errors of libraries may say nothing."""
    return str(error) or type(error).__name__


def _said(header: Dataset) -> _Kept:
    return _Kept(str(header.SOPInstanceUID), tuple(referenced_series(header)), content_time(header))


def _read_kept(path: Path) -> dict[str, _Kept]:
    """What an earlier run has read; empty if there is no file or it is damaged, for the server has it all."""
    try:
        content = json.loads(path.read_bytes())
        return {
            str(key): _Kept(str(instance), tuple(images), str(at)) for key, (instance, images, at) in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def content_time(header: Dataset) -> str:
    """When the content was created, as text that sorts: YYYYMMDDHHMMSS."""
    for date, clock in TIMES:
        if header.get(date):
            return f"{header.get(date)}{header.get(clock) or ''}"
    return ""
