# SPDX-License-Identifier: Apache-2.0
"""The local volume of a series: a NIfTI file, not compressed, that is written plane by plane and mapped into memory.

Its place on the disk is taken at once, so a full disk is an error before anything is written, and a mapped page always
exists. It gets its final name when it is complete. A lock on the partial file says that somebody still writes it.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from kprism_model.files import PART
from lib.dicom.pixel_type import PixelType
from lib.dicom.series import Series
from lib.dicom.volumes import RGB, volume_header
from lib.errors import StorageError
from lib.files import is_disk_full
from lib.imaging.medical_image import describe

logger = logging.getLogger(__name__)


class VolumeStorageError(StorageError):
    """The server cannot write a volume; no file is left of it."""


class VolumeFile:
    """The file `path` with the voxels of a series; nothing is written before `create`."""

    def __init__(self, path: Path, series: Series, kind: PixelType) -> None:
        self.path, self._kind, self._grid = path, kind, series.grid
        self.header = header_of(series, kind)
        stream = io.BytesIO()
        self.header.write_to(stream)
        self._start = stream.getvalue().ljust(int(self.header["vox_offset"]), b"\0")
        columns, rows, slices = series.grid
        self._plane = columns * rows * kind.channels * kind.dtype.itemsize
        self.size = len(self._start) + slices * self._plane
        self._lock = Lock()
        self._descriptor: int | None = None
        self._partial: Path | None = None
        self._is_over = False

    @property
    def is_lost(self) -> bool:
        """Whether the file was finished or given up, and is not there: nothing more is written to it."""
        return self._is_over and not self.is_complete()

    def is_complete(self) -> bool:
        """Whether the file is there, with this header and all planes."""
        try:
            with self.path.open("rb") as file:
                return os.fstat(file.fileno()).st_size == self.size and file.read(len(self._start)) == self._start
        except OSError:
            return False

    def create(self) -> None:
        """Take the place on the disk, unless that is done; VolumeStorageError if there is too little."""
        with self._lock, self._translated():
            if self._descriptor is not None or self._is_over:
                return
            partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}{PART}")
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not partial.exists():  # another process has just taken it for an abandoned one
                    raise OSError(errno.EAGAIN, "another process removed it; try again")
                os.posix_fallocate(descriptor, 0, self.size)
                _write(descriptor, self._start, 0)
            except BaseException:
                os.close(descriptor)
                partial.unlink(missing_ok=True)
                raise
            self._descriptor, self._partial = descriptor, partial

    def write(self, k: int, plane: NDArray[Any]) -> None:
        """Write the plane k, (row, column[, channel]) of the file's type; nothing after `finish` or `discard`."""
        with self._lock, self._translated():
            if self._descriptor is not None:
                _write(self._descriptor, np.ascontiguousarray(plane).data.cast("B"), len(self._start) + k * self._plane)

    def finish(self) -> bool:
        """Give the file its final name, unless it has it; arrays that are mapped stay so. True if this call did it.

        After a failure it can be called again, unless somebody removed what was written.
        """
        with self._lock, self._translated():
            if self._descriptor is None or self._partial is None:
                return False
            try:
                os.fsync(self._descriptor)
                os.replace(self._partial, self.path)
            except FileNotFoundError:
                self._close()
                raise
            self._close()
            return True

    def discard(self) -> None:
        """Remove what was written so far."""
        with self._lock:
            if self._partial is not None:
                self._partial.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor, self._partial, self._is_over = self._descriptor, None, None, True
        if descriptor is not None:
            os.close(descriptor)

    def map(self) -> np.memmap[Any, Any]:
        """The voxels (i, j, k), or (channel, i, j, k) for colour, read-only; planes that have not arrived are 0."""
        with self._lock:
            colour = (self._kind.channels,) if self._kind.channels == 3 else ()
            path = self._partial or self.path
            try:
                return np.memmap(path, self._kind.dtype, "r", len(self._start), (*colour, *self._grid), "F")
            except (OSError, ValueError) as error:  # it is gone, or shorter than its header says
                raise VolumeStorageError(f"the local volume {self.path.name} cannot be read: {error}") from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = is_disk_full(error)
            reason = "the disk of the server is full" if full else f"the server cannot write it ({error.strerror})"
            size = f"{describe(self._grid)} voxels, {self.size / 2**20:,.0f} MiB"
            raise VolumeStorageError(f"the volume {self.path.name} ({size}) is not stored: {reason}") from error


def _write(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def remove_abandoned(folder: Path) -> None:
    """Delete partial volumes that nobody writes any more: their process was killed."""
    for partial in folder.glob(f".*.nii.*{PART}"):
        with suppress(OSError), partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
            logger.info("Removed %s, which was not completed", partial.name)


def header_of(series: Series, kind: PixelType) -> nibabel.Nifti1Header:
    """The header of the local volume of a series; RequestError as in `volume_header`."""
    stored = RGB if kind.channels == 3 else kind.dtype
    return volume_header(series.grid, stored, series.affine, series.volumes)


def affine_of(header: nibabel.Nifti1Header) -> NDArray[np.float64]:
    """The affine as a reader of the file gets it."""
    return np.asarray(header.get_best_affine(), np.float64)
