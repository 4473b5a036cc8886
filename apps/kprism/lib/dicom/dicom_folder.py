# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM files as a source of series, with the answers that a DICOMweb server would give.

A series is listed when its files have been left alone for a moment: a copy that is going on would be opened anew with
every file. New segmentations are written to a subfolder, so every DICOM tool finds them with the images.
"""

from __future__ import annotations

import fnmatch
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, RLock
from typing import Any, TypeVar

from pydicom import dcmread
from pydicom.dataset import Dataset

from kprism_model.files import write_bytes
from lib.dicom.dicom_files import UNREADABLE, Facts, file_bytes, header_item, read_file
from lib.dicom.folder_index import READERS, FolderIndex
from lib.dicom.folder_report import not_served
from lib.dicom.folder_series import FolderSeries, series_of
from lib.dicom.web import SeriesEntry, StoreDownError, StoreError, as_bytes
from lib.errors import RequestError
from lib.not_served import NotServed

logger = logging.getLogger(__name__)

QUIET_SECONDS = 3.0
"""A series is listed when none of its files has changed for so long."""

SCAN_SECONDS, SCAN_PAUSE = 1.0, 5.0
"""Seconds for which a look at the folder counts, or this multiple of the time that it took."""

Read = TypeVar("Read")

SEGMENTATIONS = "segmentations"
"""Subfolder for the segmentations that are stored here."""

FILTERS: Mapping[str, str] = {
    "Modality": "kind",
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "PatientID": "patient",
    "PatientName": "patient_name",
    "StudyDate": "study_date",
    "StudyDescription": "study_description",
    "SeriesNumber": "series_number",
    "SeriesDescription": "description",
}
"""Attribute of a query -> what is known of a series."""


class DicomFolder:
    """The DICOM files under `root`, as a `DicomSource`; for many threads.

    `notes` keeps what is known of the files over restarts. New segmentations go to the folder `segmentations`, by
    default one under `root`. Without `scans` only the notes count, for processes beside the server.
    """

    def __init__(
        self,
        root: Path,
        notes: Path | None = None,
        *,
        segmentations: Path | None = None,
        without: Iterable[Path] = (),
        scans: bool = True,
    ) -> None:
        self.root = root
        self.segmentations = segmentations or root / SEGMENTATIONS
        self.index = FolderIndex(root, notes, without)
        self._indexes = [self.index]
        if not self.segmentations.is_relative_to(root):
            self.segmentations.mkdir(parents=True, exist_ok=True)
            self._indexes.append(FolderIndex(self.segmentations))
        self._scans = scans
        self._scanning, self._lock = RLock(), RLock()
        self._ended = Event()
        self._scanned_at, self._scan_took = -1e9, 0.0
        self._listed: dict[str, FolderSeries] = {}
        self._changing: dict[str, float] = {}  # series -> when its files changed last
        self._read_as: dict[str, str] = {}
        self.is_complete = False
        """Whether all files were looked at once."""
        if not scans:
            for index in self._indexes:
                index.restore()
            self._list()
            self.is_complete = True

    @property
    def progress(self) -> tuple[int, int] | None:
        """How many files are read and how many there are to read, while many are."""
        return self.index.progress

    def listed(self) -> dict[str, FolderSeries]:
        """Series that are listed, of every kind."""
        with self._lock:
            return dict(self._listed)

    @property
    def changing(self) -> list[str]:
        """Series whose files change at the moment, which are listed afterwards."""
        with self._lock:
            return sorted(self._changing.keys() - self._listed.keys())

    def lists(self, series: str) -> bool:
        """Whether a series is listed."""
        with self._lock:
            return series in self._listed

    def state(self, series: str) -> str:
        """A text that changes with the files of a listed series; empty for others."""
        with self._lock:
            known = self._listed.get(series)
            return known.state if known else ""

    def state_read(self, series: str) -> str:
        """The `state` of the files from which `header_items` was read last."""
        return self._read_as.get(series, "")

    def end(self) -> None:
        """End what is being indexed, because the process ends; the next one goes on."""
        self._ended.set()

    # What a DicomSource answers

    def search(self, **filters: str) -> list[SeriesEntry]:
        """Series of every kind that match all filters, such as Modality="SEG"; values may hold `*` and `?`."""
        self._check(filters)
        for _ in self._refreshed():
            pass
        return self._matching(filters)

    def pages(self, **filters: str) -> Iterator[list[SeriesEntry]]:
        """The same; while many files are read, again and again those that are known so far, perhaps none at first."""
        self._check(filters)
        for _ in self._refreshed():
            if self.progress is not None and self.progress[0] < self.progress[1]:
                yield self._matching(filters)
        yield self._matching(filters)

    def _matching(self, filters: Mapping[str, str]) -> list[SeriesEntry]:
        return [series.entry for series in self.listed().values() if _matches(series.facts, filters)]

    def _check(self, filters: Mapping[str, str]) -> None:
        wrong = filters.keys() - FILTERS.keys()
        if wrong:
            raise StoreError(f"a folder has no list by {sorted(wrong)[0]}; expected one of {', '.join(FILTERS)}")

    def find(self, series: str, **filters: str) -> SeriesEntry | None:
        """The entry of a series, if it is listed and matches; StoreDownError while it may not be indexed yet."""
        found = self.listed().get(series)
        if found is None and self.is_complete:
            for _ in self._refreshed(wait=False):
                pass
            found = self.listed().get(series)
        if found is None and not self.is_complete:
            done, total = self.progress or (0, 0)
            raise StoreDownError(
                f"series {series} is not known yet: {done:,} of {total:,} files of {self.root} are indexed"
            )
        return found.entry if found is not None and _matches(found.facts, filters) else None

    def fetch(self, study: str, series: str) -> Iterator[Dataset]:
        """The complete instances of a series."""
        for instance, path in self._files(series).items():
            yield self._read(path, instance, read_file)

    def headers(self, study: str, series: str, attributes: Iterable[str]) -> list[Dataset]:
        """The given attributes of the instances of a series, as far as they have them."""
        names = list(attributes)

        def read(path: Path) -> Dataset:
            header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["SpecificCharacterSet", *names])
            return Dataset({element.tag: element for element in header if element.keyword in names})

        return [self._read(path, instance, read) for instance, path in self._files(series).items()]

    def header_items(self, study: str, series: str) -> list[dict[str, Any]]:
        """The headers of a series as DICOM JSON."""
        state, files = self.state(series), self._files(series)
        with ThreadPoolExecutor(READERS, "dicom-headers") as readers:
            items = list(readers.map(lambda file: self._read(file[1], file[0], header_item), files.items()))
        self._read_as[series] = state
        return items

    def instance_file(self, study: str, series: str, instance: str) -> bytes:
        """One complete instance as a DICOM file; StoreError if it is not there any more."""
        path = self._files(series).get(instance)
        if path is None:
            raise StoreError(f"folder {self.root} has no image {instance} any more")
        content: bytes = self._read(path, instance, file_bytes)
        return content

    def store(self, instances: Iterable[Dataset]) -> None:
        """Write instances to the folder `segmentations`; StoreError if that is not possible."""
        for instance in instances:
            path = self.segmentations / f"{instance.SOPInstanceUID}.dcm"
            try:
                self.segmentations.mkdir(parents=True, exist_ok=True)
                write_bytes(path, as_bytes(instance))
            except OSError as error:
                raise StoreError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error
            self._indexes[-1].add(path)
            self._list(at_once=str(instance.SeriesInstanceUID))

    # How the folder is looked at

    def _refreshed(self, *, wait: bool = True) -> Iterator[None]:
        """Look at the folder if the last look is too old, pausing after each part of the new files.

        Another thread that does so is waited for; without `wait` it is left alone.
        """
        if not self._scans or not self._scanning.acquire(blocking=wait):
            return
        try:
            if time.monotonic() - self._scanned_at < max(SCAN_SECONDS, SCAN_PAUSE * self._scan_took):
                self._list()
                return
            begun = time.monotonic()
            for index in self._indexes:
                for _ in index.scan():
                    self._list(is_reading=True)
                    if self._ended.is_set():
                        raise StoreDownError(f"folder {self.root} is not indexed any further: the server ends")
                    yield
            self._list()
            if not self.is_complete:
                self.is_complete = True
                self._log_contents()
            self._scanned_at, self._scan_took = time.monotonic(), time.monotonic() - begun
        finally:
            self._scanning.release()

    def _list(self, *, is_reading: bool = False, at_once: str = "") -> None:
        """List the series that are quiet, and `at_once`; those whose files are just being read wait for the others."""
        now = time.monotonic()
        with self._lock:
            changed: dict[str, float] = {}
            for index in self._indexes:
                changed |= index.take_changed()
            self._changing |= changed
            for series in list(self._changing):
                files = {path: entry for index in self._indexes for path, entry in index.files_of(series).items()}
                if not files:
                    self._listed.pop(series, None)
                elif series != at_once and (
                    (is_reading and series in changed) or now - self._changing[series] < QUIET_SECONDS
                ):
                    continue
                else:
                    self._listed[series] = series_of(files)
                del self._changing[series]

    def _files(self, series: str) -> Mapping[str, Path]:
        """The files of a listed series; StoreError if there is none."""
        found = self.listed().get(series)
        if found is None:
            raise StoreError(f"folder {self.root} has no series {series} any more")
        return found.files

    def _read(self, path: Path, instance: str, how: Callable[[Path], Read]) -> Read:
        try:
            return how(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise StoreError(f"folder {self.root} has no image {instance} any more: {path.name} is gone") from error
        except OSError as error:
            raise StoreDownError(f"{path} cannot be read: {error.strerror or error}") from error
        except UNREADABLE as error:
            raise RequestError(f"{path.name} is not a readable DICOM file: {error}") from error

    def _log_contents(self) -> None:
        kinds = Counter(
            "images" if series.entry.holds_images else series.facts.kind for series in self.listed().values()
        )
        images, others = kinds.pop("images", 0), sum(kinds.values())
        left_out = sum(1 for index in self._indexes for entry in index.odd.values() if entry.reason)
        logger.info(
            "%s: %s DICOM series with images, %s others, %s DICOM files that cannot be used; %s series are arriving",
            *(self.root, f"{images:,}", f"{others:,}", f"{left_out:,}", f"{len(self.changing):,}"),
        )

    def not_served(self, *, serves_others: bool = False) -> list[NotServed]:
        """What lies in the folder and is not served, see `folder_report.not_served`."""
        return not_served(self.listed(), self._indexes, serves_others=serves_others)


def _matches(facts: Facts, filters: Mapping[str, str]) -> bool:
    """Whether a series is what a query asks for."""
    return all(fnmatch.fnmatchcase(getattr(facts, FILTERS[name]), value) for name, value in filters.items())
