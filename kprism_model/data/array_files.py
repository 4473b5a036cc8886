# SPDX-License-Identifier: Apache-2.0
"""Files of a known size: their room on the disk is reserved first, so that a full disk is noticed before the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray


class NoRoomError(OSError):
    """A disk has too little room."""


def reserve(file: BinaryIO, start: int, size: int) -> None:
    """Make sure that the disk has room for `size` bytes of `file` from `start` on; OSError if it has not."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, size)
    else:  # macOS
        os.ftruncate(file.fileno(), start + size)


class SlicesFile:
    """A .npy file of uint8 slices that several processes write, each its own rows.

    Written with `pwrite`: pages of a mapping would count as memory of the process, and end it if the disk is full.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that `create` has made; ValueError or OSError if it is not whole."""
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
            if version != (1, 0):
                raise ValueError(f"{path} has .npy version {version}, expected (1, 0)")
            shape, _, _ = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
            self._start = file.tell()
        self.path, self.shape = path, tuple(shape)
        self._row = int(np.prod(self.shape[1:]))
        if path.stat().st_size != self._start + self.shape[0] * self._row:
            raise ValueError(f"{path} is cut")

    @classmethod
    def create(cls, path: Path, shape: tuple[int, ...]) -> SlicesFile:
        """A file of zeros (slice, ...); nothing is left of it if the disk has no room, which is an OSError."""
        try:
            with path.open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
                file.flush()
                reserve(file, file.tell(), int(np.prod(shape)))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return cls(path)

    def write(self, first: int, slices: NDArray[np.uint8]) -> None:
        """Write slices (slice, ...) to the rows from `first` on."""
        content, place = np.ascontiguousarray(slices).reshape(-1).data, self._start + first * self._row
        with self.path.open("r+b", buffering=0) as file:
            while len(content):
                written = os.pwrite(file.fileno(), content, place)
                content, place = content[written:], place + written

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())
