# SPDX-License-Identifier: Apache-2.0
"""Local copies of series of a DICOMweb server: a folder with the headers of each, and a volume beside it.

Earlier versions kept a folder of instances and a compressed volume. Such a series needs no server: its headers and its
pixels are read from these files, which are removed when the volume is complete.
"""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from threading import RLock

from lib.dicom.fetch_pool import FetchPool
from lib.dicom.pixel_type import PixelType
from lib.dicom.series import Series, read_headers
from lib.dicom.series_headers import FILE_NAME, SeriesHeaders, fetch_headers
from lib.dicom.series_volume import SeriesVolume, grid_image
from lib.dicom.source import DicomSource
from lib.dicom.volume_budget import VolumeBudget
from lib.dicom.volume_file import remove_abandoned
from lib.dicom.web import SeriesEntry
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage

logger = logging.getLogger(__name__)

SUFFIX = ".nii"
EARLIER_SUFFIX = ".nii.gz"


class SeriesCache:
    """Opens a series on its first use; `find` gives the server's entry of a series.

    Each series has its own lock, so others can be used while the headers of a large one are fetched. `budget` is the
    number of bytes of the volumes (see `VolumeBudget`), None for no limit. `on_unreadable` is called with a series one
    of whose images cannot be read.
    """

    def __init__(
        self,
        web: DicomSource,
        folder: Path,
        find: Callable[[str], SeriesEntry],
        budget: int | None = None,
        on_unreadable: Callable[[str, RequestError], None] = lambda image_id, error: None,
    ) -> None:
        self._web, self._folder, self._find = web, folder.resolve(), find
        self._on_unreadable = on_unreadable
        self._known: dict[str, tuple[Series, PixelType]] = {}
        self._counts: dict[str, int] = {}
        self._volumes: dict[str, SeriesVolume] = {}
        self._locks: defaultdict[str, RLock] = defaultdict(RLock)
        self._pool = FetchPool()
        remove_abandoned(self._folder)
        self._budget = None if budget is None else VolumeBudget(self._folder, budget, self._is_used)
        self._sweep()

    def lock(self, image_id: str) -> RLock:
        """The lock of a series, for code that uses its copy."""
        return self._locks[image_id]

    def path(self, image_id: str) -> Path:
        """Where the volume of a series is when it is complete."""
        return self._folder / f"{image_id}{SUFFIX}"

    def headers_path(self, image_id: str) -> Path:
        """Where the headers of a series are once it was opened."""
        return self._folder / image_id / FILE_NAME

    def series(self, image_id: str) -> Series:
        """The geometry of a series and the order of its slices, from its headers alone."""
        return self._described(image_id)[0]

    def grid_image(self, image_id: str, name: str) -> MedicalImage:
        """A series as an image without its voxels, see `series_volume.grid_image`."""
        return grid_image(*self._described(image_id), name)

    def volume(self, image_id: str) -> SeriesVolume:
        """The volume of a series; nothing is fetched for it but the headers."""
        with self.lock(image_id):
            known = self._volumes.get(image_id)
            if known is None or known.is_lost:
                series, kind = self._described(image_id)
                known = SeriesVolume(self.path(image_id), series, kind, self._reader(image_id, series), self._pool)
                if known.arrival is not None:
                    known.arrival.on_complete = lambda: self._completed(image_id)
                    known.arrival.on_too_wide = lambda: self._widen(image_id)
                    known.arrival.on_unreadable = lambda error: self._on_unreadable(image_id, error)
                    self._sweep(known.size)
                self._volumes[image_id] = known
        if self._budget is not None:
            self._budget.touch(known.path)
        return known

    def local_volume(self, path: Path) -> SeriesVolume | None:
        """The opened series whose volume `path` is; None for other files."""
        if path.parent != self._folder or path.suffix != SUFFIX:
            return None
        return self._volumes.get(path.name.removesuffix(SUFFIX))

    def holds(self, image_id: str) -> bool:
        """Whether the headers of a series are here, or a copy by an earlier version."""
        return (self._folder / image_id).is_dir()

    def is_outdated(self, entry: SeriesEntry) -> bool:
        """Whether the number of images has changed since the headers were fetched: images may still be arriving."""
        if not entry.instances or not self.holds(entry.series):
            return False
        if entry.series not in self._counts:
            headers = SeriesHeaders.read(self._folder / entry.series)
            files = len(list((self._folder / entry.series).glob("*.dcm")))
            self._counts[entry.series] = headers.instances if headers is not None else files
        return self._counts[entry.series] not in (0, entry.instances)

    def forget(self, image_id: str) -> None:
        """Remove the copy of a series; it is fetched again on its next use."""
        with self.lock(image_id):
            volume = self._volumes.pop(image_id, None)
            if volume is not None:
                volume.close()
            self._known.pop(image_id, None)
            self._counts.pop(image_id, None)
            for suffix in (SUFFIX, EARLIER_SUFFIX):
                (self._folder / f"{image_id}{suffix}").unlink(missing_ok=True)
            shutil.rmtree(self._folder / image_id, ignore_errors=True)

    def _described(self, image_id: str) -> tuple[Series, PixelType]:
        known = self._known.get(image_id)
        if known is not None:
            return known
        with self.lock(image_id):
            if image_id not in self._known:
                folder = self._folder / image_id
                headers = SeriesHeaders.read(folder) or self._earlier_headers(folder)
                if headers is None:
                    headers = fetch_headers(self._web, self._find(image_id))
                    described = headers.describe(folder)
                    headers.write(folder)
                else:
                    described = headers.describe(folder)
                self._counts[image_id], self._known[image_id] = headers.instances, described
            return self._known[image_id]

    def _earlier_headers(self, folder: Path) -> SeriesHeaders | None:
        """The headers of a copy by an earlier version; None if there is none."""
        files = list(folder.glob("*.dcm"))
        if not files:
            return None
        items = [header.to_json_dict(suppress_invalid_tags=True) for header in read_headers(files).values()]
        headers = SeriesHeaders.of(items, len(files))
        headers.write(folder)
        return headers

    def _reader(self, image_id: str, series: Series) -> Callable[[str], bytes]:
        """How an instance is read: from a copy by an earlier version, else from the server."""
        folder, web, study = self._folder / image_id, self._web, str(series.first.StudyInstanceUID)

        def read(instance: str) -> bytes:
            try:
                return (folder / f"{instance}.dcm").read_bytes()
            except FileNotFoundError:
                return web.instance_file(study, image_id, instance)

        return read

    def _completed(self, image_id: str) -> None:
        """Remove what an earlier version kept of a series, and volumes beyond the budget."""
        for file in (self._folder / image_id).glob("*.dcm"):
            file.unlink(missing_ok=True)
        (self._folder / f"{image_id}{EARLIER_SUFFIX}").unlink(missing_ok=True)
        self._sweep()

    def _widen(self, image_id: str) -> bool:
        """Note that the values of a series need 32 bits; False if that is no other type."""
        with self.lock(image_id):
            folder = self._folder / image_id
            headers = SeriesHeaders.read(folder)
            before = self._known.get(image_id)
            if headers is None or before is None:
                return False
            wider = headers.widened()
            if wider.describe(folder)[1] == before[1]:
                return False
            wider.write(folder)
            self._known.pop(image_id)
            self._volumes.pop(image_id, None)
            return True

    def _is_used(self, image_id: str) -> bool:
        volume = self._volumes.get(image_id)
        return volume is not None and (not volume.is_complete or volume.is_mapped)

    def _sweep(self, coming: int = 0) -> None:
        if self._budget is not None:
            self._budget.sweep(coming)
