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
    image_id: str
    age: tuple[float, str]


class SegIndex:
    """Looks at each segmentation once; `is_image` says whether a series is one that can be labelled."""

    def __init__(self, web: DicomWeb, arrivals: Arrivals, is_image: Callable[[str], bool]) -> None:
        self._web, self._arrivals, self._is_image = web, arrivals, is_image
        self._seen: dict[str, Found | None] = {}

    def newest(self, entries: Iterable[SeriesEntry]) -> dict[str, Found]:
        """Series -> its newest segmentation, among those that the server lists now."""
        there = {entry.series: entry for entry in entries}
        self._arrivals.note(there)
        for gone in set(self._seen) - set(there):
            del self._seen[gone]
        for series in set(there) - set(self._seen):
            self._seen[series] = self._look_at(there[series])
        newest: dict[str, Found] = {}
        for found in self._seen.values():
            if found and (found.image_id not in newest or found.age >= newest[found.image_id].age):
                newest[found.image_id] = found
        return newest

    def leave_out(self, series: str) -> None:
        """A segmentation that turned out to be unusable: an older one counts instead."""
        self._seen[series] = None

    def _look_at(self, entry: SeriesEntry) -> Found | None:
        """What a segmentation refers to; None, and a line in the log, if that is no image of this server."""
        try:
            headers = self._web.headers(entry.study, entry.series)
        except StoreDownError:
            raise
        except RequestError as error:
            logger.warning("Segmentation %s cannot be read: %s", entry.series, error)
            return None
        newest = max(headers, key=content_time, default=Dataset())
        image_id = referenced_series(newest)
        if image_id is None or not self._is_image(image_id):
            logger.warning("Segmentation %s refers to no image series of this server (%s)", entry.series, image_id)
            return None
        return Found(entry, image_id, (self._arrivals.time(entry.series), content_time(newest)))


def content_time(header: Dataset) -> str:
    """When content was made, as text that sorts: YYYYMMDDHHMMSS."""
    for date, clock in (("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime"), ("StudyDate", "StudyTime")):
        if header.get(date):
            return f"{header.get(date)}{header.get(clock) or ''}"
    return ""
