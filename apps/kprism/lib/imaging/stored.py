# SPDX-License-Identifier: Apache-2.0
"""What a reader of one file format gives: the voxels as they are stored, and how to place and scale them."""

from __future__ import annotations

import bz2
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import igzip, isal_zlib
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from lib.errors import RequestError, TooLargeError
from lib.imaging.file_labels import FileLabels
from lib.imaging.mapped import Allocate
from lib.imaging.medical_image import describe

CHUNK = 4 << 20
"""Bytes that are read and converted at once."""


@dataclass(frozen=True)
class Stored:
    """Voxels (i, j[, k][, ...]), affine (RAS+), NIfTI header, whether colours are on the last axis, and `placed`.

    `rescale` is the slope and the intercept that make values of the voxels. `also_at`, `itk_affine` and
    `exif_orientation` as in `MedicalImage`; affines may be unusable. `file_labels`: what a label file says about its
    values.
    """

    array: NDArray[Any]
    affine: NDArray[Any]
    header: Nifti1Header | None = None
    colour: bool = False
    placed: bool = True
    rescale: tuple[float, float] = (1.0, 0.0)
    also_at: tuple[NDArray[Any], ...] = ()
    itk_affine: NDArray[Any] | None = None
    exif_orientation: int = 1
    file_labels: FileLabels | None = None


@dataclass(frozen=True)
class Room:
    """Where voxels are read to: what makes the array, the most bytes that it may take, and those of a decoder."""

    allocate: Allocate
    limit: int
    memory: int

    def check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """TooLargeError for a file whose header claims more than the limit; RequestError for an empty axis."""
        if min(shape, default=0) < 1:
            raise RequestError(f"claims {describe(shape)} voxels; expected at least 1 along each axis")
        size = math.prod(int(side) for side in shape) * kept_as(dtype).itemsize
        if size > self.limit:
            raise TooLargeError(too_large(shape, size, self.limit))

    def check_decoded(self, shape: tuple[int, ...]) -> None:
        """TooLargeError for a picture whose bytes (column, row, byte) do not fit into memory while it is decoded."""
        size = math.prod(int(side) for side in shape)
        if size > self.memory:
            raise TooLargeError(too_large(shape, size, self.memory, "memory for one picture", "cache_mb"))

    def filled(self, stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array (i, j, ...) of a stream's next bytes, the first axis the fastest; EOFError if it ends before."""
        self.check(shape, dtype)
        array = self.allocate(shape, kept_as(dtype))
        flat = array.reshape(-1, order="F")
        if array.dtype == dtype:
            _fill(stream, flat.view(np.uint8).data)
            return array
        count = max(1, CHUNK // dtype.itemsize)
        for start in range(0, flat.size, count):
            part = np.empty(min(count, flat.size - start), dtype)
            _fill(stream, part.view(np.uint8).data)
            flat[start : start + len(part)] = part
        return array


def decoded(line: bytes) -> str:
    """A line of a header: UTF-8 as most programs write, or else Latin-1, in which every byte is a letter."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def check_axes(shape: tuple[int, ...]) -> None:
    """RequestError unless the axes in space are two or three; further ones may have a single voxel."""
    axes = len(shape)
    while axes > 3 and shape[axes - 1] == 1:
        axes -= 1
    if axes not in (2, 3):
        raise RequestError(f"has {axes} axes ({describe(shape[:axes])}); expected 2 or 3")


def too_large(shape: tuple[int, ...], size: int, limit: int, what: str = "one image", setting: str = "image_mb") -> str:
    """The end of a sentence about an image that takes more than the `limit` of a setting, both in bytes."""
    return (
        f"claims {describe(shape)} voxels, which take {size / 2**20:,.0f} MiB; this server's limit for {what} is "
        f"{limit / 2**20:,.0f} MiB (--conf {setting})"
    )


def kept_as(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which values of a file are kept: real numbers in float32, and all in this machine's byte order."""
    return np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("=")


def opened(file: Path | IO[bytes], compression: str = "", mode: str = "rb") -> IO[bytes]:
    """The content of a file as a stream to read or write; `compression` is "gzip" (fast, little), "bzip2" or none.

    "zlib" is for reading an open stream.
    """
    if compression == "zlib":
        return io.BufferedReader(_Inflated(file), CHUNK)  # type: ignore[arg-type]
    openers: dict[str, Callable[..., Any]] = {"gzip": partial(igzip.open, compresslevel=1), "bzip2": bz2.open}
    stream: IO[bytes] = openers.get(compression, open)(file, mode)
    return stream


class _Inflated(io.RawIOBase):
    """The content of a stream of zlib or gzip data, as far as it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._inflater = isal_zlib.decompressobj(wbits=47)  # either header

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._stream.read(CHUNK >> 4)
            part = self._inflater.decompress(packed, len(view))
            if part or not packed:
                view[: len(part)] = part
                return len(part)
        return 0


def _fill(stream: IO[bytes], target: memoryview) -> None:
    place = 0
    while place < len(target):
        count = stream.readinto(target[place : place + CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"the file ends after {place} of the {len(target)} bytes of its voxels")
        place += count
