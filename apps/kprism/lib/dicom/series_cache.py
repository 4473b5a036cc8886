# SPDX-License-Identifier: Apache-2.0
"""Local copies of series of a DICOMweb server: a folder of instances each, which is complete or does not exist."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from threading import RLock

from lib.dicom.series import Series, describe_series, read_headers, read_voxels
from lib.dicom.volumes import save_volume
from lib.dicom.web import DicomWeb, SeriesEntry


class SeriesCache:
    """Fetches a series on its first use; `find` gives the server's entry of a series.

    Each series has its own lock, so others can be used while a large one is fetched.
    """

    def __init__(self, web: DicomWeb, folder: Path, find: Callable[[str], SeriesEntry]) -> None:
        self._web, self._folder, self._find = web, folder, find
        self._series: dict[str, Series] = {}
        self._counts: dict[str, int] = {}
        self._locks: defaultdict[str, RLock] = defaultdict(RLock)

    def lock(self, image_id: str) -> RLock:
        """The lock of a series, for code that uses its copy."""
        return self._locks[image_id]

    def series(self, image_id: str) -> Series:
        """The geometry of a series and the order of its slices."""
        known = self._series.get(image_id)
        if known is not None:
            return known
        with self.lock(image_id):
            if image_id not in self._series:
                folder = self._folder / image_id
                if not folder.is_dir():
                    self._fetch(self._find(image_id), folder)
                self._series[image_id] = describe_series(list(read_headers(folder.glob("*.dcm")).values()))
            return self._series[image_id]

    def write_volume(self, image_id: str, path: Path) -> Series:
        """Write a series as one volume on its own grid; the file appears only when it is complete."""
        with self.lock(image_id):
            series = self.series(image_id)
            files = {file.stem: file for file in (self._folder / image_id).glob("*.dcm")}
            partial = path.with_name(f"{path.name}.partial{os.getpid()}")
            try:
                save_volume(read_voxels(series, files), series.affine, partial, series.volumes)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            return series

    def holds(self, image_id: str) -> bool:
        """Whether there is a copy of the instances of a series."""
        return (self._folder / image_id).is_dir()

    def is_outdated(self, entry: SeriesEntry) -> bool:
        """Whether the number of images has changed since the copy was made: images may still be arriving."""
        folder = self._folder / entry.series
        if not folder.is_dir() or not entry.instances:
            return False
        if entry.series not in self._counts:
            self._counts[entry.series] = len(list(folder.glob("*.dcm")))
        return self._counts[entry.series] != entry.instances

    def forget(self, image_id: str) -> None:
        """Remove the copy of a series; it is fetched again on its next use."""
        with self.lock(image_id):
            self._series.pop(image_id, None)
            shutil.rmtree(self._folder / image_id, ignore_errors=True)

    def _fetch(self, entry: SeriesEntry, folder: Path) -> None:
        partial = folder.with_name(f"{folder.name}.partial{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for instance in self._web.fetch(entry.study, entry.series):
                instance.save_as(partial / f"{instance.SOPInstanceUID}.dcm", write_like_original=False)
            partial.rename(folder)
            self._counts[entry.series] = (
                entry.instances
            )  # not the number received: a server that counts wrongly would never match
        finally:
            shutil.rmtree(partial, ignore_errors=True)
