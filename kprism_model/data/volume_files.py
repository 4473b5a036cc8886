# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes as stacks of slices that stay as they are stored: a part gets its values when it is read.

An uncompressed file is mapped into memory. A compressed one is unpacked, a large one into a file without a name that is
mapped, if there is a folder for it: the kernel then keeps of it in memory what there is room for.
"""

from __future__ import annotations

import gzip
import math
import mmap
import tempfile
import zlib
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.volumeutils import apply_read_scaling
from numpy.typing import NDArray

from kprism_model.data.array_files import NoRoomError, reserve
from kprism_model.orientation import SliceOrientation, stored_slice_axis

LARGE = 32 << 20
"""Bytes from which on an unpacked volume is mapped, not held in memory."""

_CHUNK = 4 << 20  # bytes that are unpacked at once

open_gzip: Any = gzip.open
"""Opens a compressed file to read, by the fastest library that is installed."""
DAMAGE: Any = (OSError, EOFError, ValueError, zlib.error)
"""What reading of a damaged file raises."""
if find_spec("isal") is not None:  # twice as fast or more
    from isal import igzip
    from isal.igzip_lib import IsalError

    open_gzip = igzip.open
    DAMAGE += (IsalError,)


@dataclass(frozen=True, eq=False)
class VolumeSlices:
    """The slices (slice, row, column) of a volume; `slope` and `intercept` make values of its `stored` voxels.

    The values, and their type, are those that nibabel gives for the whole volume.
    """

    stored: NDArray[Any] = field(repr=False)
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Slices, rows, columns."""
        return self.stored.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        return self._values(np.zeros(1, self.stored.dtype)).dtype

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        return self._values(self.stored[part])

    def _values(self, stored: NDArray[Any]) -> NDArray[Any]:
        values: NDArray[Any] = apply_read_scaling(stored, self.slope, self.intercept)
        return values


def volume_orientation(path: Path) -> SliceOrientation:
    """How a volume is cut into slices, from its header alone; ValueError if `path` is no volume of one channel."""
    image = _open_volume(path)
    try:
        return SliceOrientation.of(image.affine, image.shape, slice_axis=stored_slice_axis(image.header))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def open_slices(path: Path, orientation: SliceOrientation, scratch: Path | None = None) -> VolumeSlices:
    """The slices of the volume `path`, cut as `orientation`, that of its image, says.

    `scratch` is the folder for unpacked large volumes; they are held in memory if it is None. ValueError for another
    shape than `orientation` has, and for a file that cannot be read; NoRoomError that says what is needed if the disk
    of `scratch` is full.
    """
    image = _open_volume(path)
    if image.shape != orientation.shape:
        raise ValueError(f"{path} has shape {image.shape}, but its image has {orientation.shape}")
    proxy = image.dataobj
    try:
        compressed = path.name.endswith(".gz")
        stored = _unpacked(path, proxy, scratch) if compressed else np.asanyarray(proxy.get_unscaled())
    except NoRoomError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as NIfTI: {error}") from error
    return VolumeSlices(orientation.to_slices(stored), float(proxy.slope), float(proxy.inter))


def _open_volume(path: Path) -> Any:
    try:
        image: Any = nib.load(path)
    except (ImageFileError, *DAMAGE) as error:
        raise ValueError(f"{path} cannot be read as NIfTI: {error}") from error
    if len(image.shape) != 3 or image.get_data_dtype().kind not in "buif":
        raise ValueError(f"{path} must be a volume of three axes and one channel, got {image.shape}")
    return image


def _unpacked(path: Path, proxy: Any, scratch: Path | None) -> NDArray[Any]:
    """The voxels of a compressed volume as they are stored, the first axis the fastest in memory."""
    size = math.prod(proxy.shape) * proxy.dtype.itemsize
    memory: Any = np.empty(size, np.uint8) if scratch is None or size < LARGE else _mapped(size, path, scratch)
    target, filled = memoryview(memory), 0
    with open_gzip(path, "rb") as file:
        file.seek(proxy.offset)
        while filled < size:
            read = file.readinto(target[filled : filled + _CHUNK])
            if not read:
                raise ValueError(f"expected {size} bytes of voxels, got {filled}")
            filled += read
    return np.ndarray(proxy.shape, proxy.dtype, memory, order="F")


def _mapped(size: int, path: Path, scratch: Path) -> mmap.mmap:
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            reserve(file, 0, size)  # a write to a mapping of a full disk would end the process
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise NoRoomError(f"{path} needs {size / 1e9:.2f} GB in {scratch} while it is read: {error}") from error
