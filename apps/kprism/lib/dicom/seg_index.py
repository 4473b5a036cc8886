# SPDX-License-Identifier: Apache-2.0
"""Which segmentation on a DICOMweb server is the label of which series: the newest one that refers to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydicom.dataset import Dataset

from lib.dicom.arrival_times import ArrivalTimes
from lib.dicom.seg_reader import referenced_series
from lib.dicom.web import DicomWeb, SeriesEntry, StoreDownError
from lib.errors import RequestError

logger = logging.getLogger(__name__)

TIMES = (("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime"))
"""Attributes for the time of a segmentation's content, the best first."""

HEADER = ("SOPInstanceUID", "ReferencedSeriesSequence", *(name for names in TIMES for name in names))
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


class SegIndex:
    """Reads each segmentation once; `is_image` says whether a series can be labelled.

    A series with more instances than before is a new segmentation.
    """

    def __init__(self, web: DicomWeb, arrival_times: ArrivalTimes, is_image: Callable[[str], bool]) -> None:
        self._web, self._arrival_times, self._is_image = web, arrival_times, is_image
        self._seen: dict[str, StoredSegmentation | None] = {}
        self._unusable: dict[str, UnusableSegmentation] = {}

    def newest(self, entries: Iterable[SeriesEntry]) -> dict[str, StoredSegmentation]:
        """Image -> its newest segmentation of those that the server lists now."""
        there = {_entry_key(entry): entry for entry in entries}
        self._arrival_times.note(there)
        for gone in set(self._seen) - set(there):
            del self._seen[gone]
            self._unusable.pop(gone, None)
        for key in set(there) - set(self._seen):
            self._seen[key] = self._read(key, there[key])
        newest: dict[str, StoredSegmentation] = {}
        for key, stored in self._seen.items():
            image_id = self._image_of(key, stored) if stored else None
            if stored and image_id and (image_id not in newest or stored.age >= newest[image_id].age):
                newest[image_id] = stored
        return newest

    def add(self, segmentation: Dataset) -> None:
        """Note a segmentation that was just stored on the server, so that it need not be read from there."""
        study, series = str(segmentation.StudyInstanceUID), str(segmentation.SeriesInstanceUID)
        description, patient = (str(segmentation.get(name, "")) for name in ("SeriesDescription", "PatientID"))
        entry = SeriesEntry(study, series, "SEG", description, patient, 1)
        key = _entry_key(entry)
        self._arrival_times.note([key])
        self._seen[key] = self._stored(key, entry, segmentation)

    def mark_unusable(self, entry: SeriesEntry, reason: str) -> None:
        """Mark a segmentation as unusable; an older one counts instead."""
        self._seen[_entry_key(entry)] = None
        self._note(entry, f"cannot be used: {reason}")

    def unusable(self) -> list[UnusableSegmentation]:
        """Segmentations on the server that cannot be used, with the reason."""
        return list(self._unusable.values())

    def _note(self, entry: SeriesEntry, reason: str) -> None:
        self._unusable[_entry_key(entry)] = UnusableSegmentation(entry, reason)
        logger.warning("Segmentation %s %s", entry.series, reason)

    def _read(self, key: str, entry: SeriesEntry) -> StoredSegmentation | None:
        """The segmentation in a series; None if it cannot be read."""
        try:
            headers = self._web.headers(entry.study, entry.series, HEADER)
            return self._stored(key, entry, max(headers, key=content_time))
        except StoreDownError:
            raise
        except (RequestError, ValueError, AttributeError, KeyError) as error:
            self._note(entry, f"cannot be read: {error}")
            return None

    def _stored(self, key: str, entry: SeriesEntry, header: Dataset) -> StoredSegmentation:
        age = (self._arrival_times.time(key), content_time(header))
        return StoredSegmentation(entry, str(header.SOPInstanceUID), tuple(referenced_series(header)), age)

    def _image_of(self, key: str, stored: StoredSegmentation) -> str | None:
        """The image that a segmentation refers to, or None; an image may arrive after its label."""
        image_id = next((series for series in stored.images if self._is_image(series)), None)
        if image_id is not None:
            self._unusable.pop(key, None)
        elif key not in self._unusable:
            names = ", ".join(stored.images) or "none"
            self._note(stored.entry, f"refers to no image series of this server (it names {names})")
        return image_id


def _entry_key(entry: SeriesEntry) -> str:
    return entry.series if entry.instances < 2 else f"{entry.series} ({entry.instances})"


def content_time(header: Dataset) -> str:
    """When the content was created, as text that sorts: YYYYMMDDHHMMSS."""
    for date, clock in TIMES:
        if header.get(date):
            return f"{header.get(date)}{header.get(clock) or ''}"
    return ""
