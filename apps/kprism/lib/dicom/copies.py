# SPDX-License-Identifier: Apache-2.0
"""Series of a DICOMweb server as files on this machine: a folder of instances each, whole or not there at all."""

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


class Copies:
    """Fetches a series when it is first asked for; `find` gives the server's entry of a series.

    Each series has a lock of its own: while a large one is fetched, work on the others goes on.
    """

    def __init__(self, web: DicomWeb, folder: Path, find: Callable[[str], SeriesEntry]) -> None:
        self._web, self._folder, self._find = web, folder, find
        self._series: dict[str, Series] = {}
        self._counts: dict[str, int] = {}
        self._locks: defaultdict[str, RLock] = defaultdict(RLock)

    def lock(self, image_id: str) -> RLock:
        """The lock of a series, for whoever makes something of its copy."""
        return self._locks[image_id]

    def series(self, image_id: str) -> Series:
        """How a series lies in space, and which of its images is which slice."""
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
                save_volume(read_voxels(series, files), series.affine, partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            return series

    def is_outdated(self, entry: SeriesEntry) -> bool:
        """Whether the server holds another number of images than when the copy was made, while they were arriving."""
        folder = self._folder / entry.series
        if not folder.is_dir() or not entry.instances:
            return False
        if entry.series not in self._counts:
            self._counts[entry.series] = len(list(folder.glob("*.dcm")))
        return self._counts[entry.series] != entry.instances

    def forget(self, image_id: str) -> None:
        """Remove the copy of a series; it is fetched again when it is asked for."""
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
            self._counts[entry.series] = entry.instances  # not what came: a server that counts wrongly stays the same
        finally:
            shutil.rmtree(partial, ignore_errors=True)
