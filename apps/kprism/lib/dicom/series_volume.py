# SPDX-License-Identifier: Apache-2.0
"""A series whose geometry is known and whose voxels arrive while it is used already."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lib.dicom.arrival import Arrival
from lib.dicom.fetch_pool import FetchPool
from lib.dicom.pixel_type import PixelType
from lib.dicom.series import Series
from lib.dicom.volume_file import VolumeFile, affine_of, header_of
from lib.imaging.medical_image import MedicalImage

ANSWER_SUFFIX = ".nii.gz"
"""The type of an answer if the client names none; the volume itself is `.nii`, to be mapped."""


class SeriesVolume:
    """The local volume of a series at `path`, which exists when it is complete.

    `fetch` gives the DICOM file of an instance by its identifier. `digest` identifies the content from the headers
    alone, whatever has arrived.
    """

    def __init__(
        self, path: Path, series: Series, kind: PixelType, fetch: Callable[[str], bytes], pool: FetchPool
    ) -> None:
        self.path, self.series, self.kind = path, series, kind
        self.digest = _digest(series, kind)
        self._file = VolumeFile(path, series, kind)
        self.arrival: Arrival | None = None
        if not self._file.is_complete():
            self.arrival = Arrival(series, kind, self._file, fetch, pool)
        self._mapping = Lock()
        self._mapped: weakref.ref[np.memmap[Any, Any]] | None = None

    def begin(self, k: int = -1) -> None:
        """Let the voxels arrive in the background, around the plane k first; does not block.

        They stop if nobody asks for a while, see `Arrival`.
        """
        if self.arrival is not None:
            self.arrival.start(k)

    def stop(self) -> None:
        """Let arrive only what somebody waits for: the series is not in view any more."""
        if self.arrival is not None:
            self.arrival.stop()

    def close(self) -> None:
        """End the arrival for good: the series has changed."""
        if self.arrival is not None:
            self.arrival.close()

    def wait(self, planes: Sequence[int]) -> None:
        """Return when these planes (k) have arrived.

        StoreDownError if the server does not answer; RequestError if an image is missing or cannot be read, and if the
        disk is full.
        """
        if self.arrival is not None:
            self.arrival.wait(planes)

    def complete(self) -> Path:
        """The path, when all planes have arrived; errors as for `wait`."""
        if self.arrival is not None:
            self.arrival.wait_for_all()
        return self.path

    @property
    def progress(self) -> tuple[int, int]:
        """The number of planes that have arrived, and of all."""
        count = self.series.grid[2]
        return self.arrival.progress if self.arrival is not None else (count, count)

    @property
    def failed(self) -> int:
        """The number of planes that could not be fetched."""
        return self.arrival.failed if self.arrival is not None else 0

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @property
    def is_complete(self) -> bool:
        """Whether all planes have arrived."""
        arrived, total = self.progress
        return arrived == total

    @property
    def is_lost(self) -> bool:
        """Whether the file had its final name, and is gone or damaged: it has to arrive again."""
        return self._file.is_lost if self.arrival is not None else not self._file.is_complete()

    @property
    def is_mapped(self) -> bool:
        """Whether somebody in this process has the voxels as an array."""
        return self._mapped is not None and self._mapped() is not None

    def image(self, name: str) -> MedicalImage:
        """The series as an image whose voxels may still arrive; `name` stands for it in messages.

        Planes of `array` are 0 before they have arrived: call `arrival.wait` for those that are read.
        """
        array: Any = self._array()
        if self.kind.channels == 3:
            array = array.transpose(1, 2, 3, 0)
        arrival = None if self.is_complete else self
        return replace(grid_image(self.series, self.kind, name), array=array, arrival=arrival)

    def _array(self) -> np.memmap[Any, Any]:
        with self._mapping:
            known = self._mapped() if self._mapped is not None else None
            if known is not None:
                return known
            if self.arrival is not None:
                self.arrival.prepare()
            array = self._file.map()
            self._mapped = weakref.ref(array)
            return array


def grid_image(series: Series, kind: PixelType, name: str) -> MedicalImage:
    """A series as an image whose voxels are all 0, for what needs its grid alone: it takes no memory and no file."""
    header = header_of(series, kind)
    shape = (*series.grid, 3) if kind.channels == 3 else series.grid
    return MedicalImage(
        name,
        np.broadcast_to(np.zeros((), kind.dtype), shape),
        affine_of(header),
        3,
        ANSWER_SUFFIX,
        _digest(series, kind),
        header,
        slice_axis=2,
        volumes=series.volumes,
    )


def _digest(series: Series, kind: PixelType) -> str:
    content = hashlib.blake2b(digest_size=16)
    for frame in series.frames:
        content.update(f"{frame.instance} {frame.number}\n".encode())
    rest = (series.grid, series.volumes, kind.dtype.str, kind.channels, series.affine.tolist())
    content.update(repr(rest).encode())
    return content.hexdigest()
