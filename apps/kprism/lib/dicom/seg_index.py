# SPDX-License-Identifier: Apache-2.0
"""Which segmentation of a DICOMweb server is the label of which series: the newest one that refers to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydicom.dataset import Dataset

from lib.dicom.arrivals import Arrivals
from lib.dicom.seg_reader import referenced_series
from lib.dicom.web import DicomWeb, SeriesEntry, StoreDownError
from lib.errors import RequestError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A segmentation on the server, what it refers to, and what it is newer by: see `Arrivals`."""

    entry: SeriesEntry
    instance: str
    images: tuple[str, ...]
    age: tuple[float, str]


@dataclass(frozen=True)
class Unusable:
    """A segmentation on the server that is nobody's label, and why."""

    entry: SeriesEntry
    reason: str


class SegIndex:
    """Looks at each segmentation once; `is_image` says whether a series is one that can be labelled.

    A series with more instances than at the last look is a new segmentation.
    """

    def __init__(self, web: DicomWeb, arrivals: Arrivals, is_image: Callable[[str], bool]) -> None:
        self._web, self._arrivals, self._is_image = web, arrivals, is_image
        self._seen: dict[str, Found | None] = {}
        self._unusable: dict[str, Unusable] = {}

    def newest(self, entries: Iterable[SeriesEntry]) -> dict[str, Found]:
        """Image -> its newest segmentation, among those that the server lists now."""
        there = {_key(entry): entry for entry in entries}
        self._arrivals.note(there)
        for gone in set(self._seen) - set(there):
            del self._seen[gone]
            self._unusable.pop(gone, None)
        for key in set(there) - set(self._seen):
            self._seen[key] = self._look_at(key, there[key])
        newest: dict[str, Found] = {}
        for key, found in self._seen.items():
            image_id = self._image_of(key, found) if found else None
            if found and image_id and (image_id not in newest or found.age >= newest[image_id].age):
                newest[image_id] = found
        return newest

    def leave_out(self, entry: SeriesEntry, reason: str) -> None:
        """A segmentation that turned out to be unusable: an older one counts instead."""
        self._seen[_key(entry)] = None
        self._note(entry, f"cannot be used: {reason}")

    def unusable(self) -> list[Unusable]:
        """Segmentations on the server that could not be used when they were looked at."""
        return list(self._unusable.values())

    def _note(self, entry: SeriesEntry, reason: str) -> None:
        self._unusable[_key(entry)] = Unusable(entry, reason)
        logger.warning("Segmentation %s %s", entry.series, reason)

    def _look_at(self, key: str, entry: SeriesEntry) -> Found | None:
        """What a segmentation refers to; None if that cannot be read."""
        try:
            headers = self._web.headers(entry.study, entry.series)
            newest = max(headers, key=content_time)
            age = (self._arrivals.time(key), content_time(newest))
            return Found(entry, str(newest.SOPInstanceUID), tuple(referenced_series(newest)), age)
        except StoreDownError:
            raise
        except (RequestError, ValueError, AttributeError, KeyError) as error:
            self._note(entry, f"cannot be read: {error}")
            return None

    def _image_of(self, key: str, found: Found) -> str | None:
        """The image that a segmentation refers to, as soon as the server has it; images may come after their label."""
        image_id = next((series for series in found.images if self._is_image(series)), None)
        if image_id is not None:
            self._unusable.pop(key, None)
        elif key not in self._unusable:
            names = ", ".join(found.images) or "none"
            self._note(found.entry, f"refers to no image series of this server (it names {names})")
        return image_id


def _key(entry: SeriesEntry) -> str:
    return entry.series if entry.instances < 2 else f"{entry.series} ({entry.instances})"


def content_time(header: Dataset) -> str:
    """When content was made, as text that sorts: YYYYMMDDHHMMSS."""
    for date, clock in (("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime")):
        if header.get(date):
            return f"{header.get(date)}{header.get(clock) or ''}"
    return ""
