# SPDX-License-Identifier: Apache-2.0
"""Reads MetaImage files: `.mha` with the voxels behind the header, `.mhd` with them in a file beside it.

The header is lines "Key = Value"; the last key is ElementDataFile. Fields that place the image are in LPS, and what ITK
leaves aside (AnatomicalOrientation, CenterOfRotation, ElementToIntensityFunction...) counts for nothing here either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS
from lib.imaging.stored import CHUNK, Room, Stored, decoded, opened

MAX_HEADER = 64 << 10
"""Bytes of the longest header; those that ITK writes have a few hundred."""

LAST_KEY = "ElementDataFile"
LOCAL = "LOCAL"

DATA_SUFFIXES = (".raw", ".zraw", ".img", ".dat")
"""Extensions of files that hold voxels: no file of another kind is read, whatever a header says."""

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""ElementType -> NumPy's name without the byte order."""

ORIGIN = ("Offset", "Position", "Origin")
AXES = ("TransformMatrix", "Rotation", "Orientation")
SPACING = ("ElementSpacing", "ElementSize")
HEADER_SIZE = "HeaderSize"
COMPRESSED = "CompressedData"
COMPRESSED_SIZE = "CompressedDataSize"
MOST_SIGNIFICANT_FIRST = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")


def read_metaimage(path: Path, room: Room) -> Stored:
    """The voxels of a MetaImage; RequestError, or what `isal` raises, for a file that cannot be read."""
    with path.open("rb") as stream:
        header = _header(stream)
        data = _beside(path, header)
        if data is None:
            array = _voxels(header, stream, room)
        else:
            with data.open("rb") as voxels:
                array = _voxels(header, voxels, room)
    channels = _whole(header, "ElementNumberOfChannels", 1)
    if channels > 1:
        array = np.moveaxis(array, 0, -1)
    placed = any(key in header for key in (*ORIGIN, *AXES))
    colour = channels in (3, 4) and array.dtype == np.uint8
    return Stored(array, _affine(header), None, colour, placed)


def data_file(path: Path) -> Path | None:
    """The file that holds the voxels of a MetaImage; None if that is the file itself, or cannot be told."""
    try:
        with path.open("rb") as stream:
            return _beside(path, _header(stream))
    except (RequestError, OSError):
        return None


def holds_its_voxels(path: Path) -> bool:
    """Whether all bytes of the voxels are where the header says, judged by the file's size.

    RequestError for a header that cannot be used. False also where that does not tell: for several channels or other
    axes than two or three, and compressed voxels of an unknown size.
    """
    with path.open("rb") as stream:
        header = _header(stream)
        begin = stream.tell()
    data = _beside(path, header)
    shape, dtype = _shape(header)
    is_compressed = _flag(header, (COMPRESSED,))
    if len(shape) not in (2, 3) or min(shape) < 1 or _whole(header, "ElementNumberOfChannels", 1) != 1:
        return False
    if is_compressed and COMPRESSED_SIZE not in header:
        return False
    size = _whole(header, COMPRESSED_SIZE, 0) if is_compressed else math.prod(shape) * dtype.itemsize
    skipped = _whole(header, HEADER_SIZE, 0)
    begin = max(skipped, begin if data is None and skipped <= 0 else 0)
    _affine(header)  # it can be read
    return (data or path).stat().st_size >= begin + size


def as_one_file(path: Path) -> Iterator[bytes]:
    """The content of an `.mha` file that holds what a header and the file beside it hold, piece by piece."""
    with path.open("rb") as stream:
        header = _header(stream)
    data = _beside(path, header)
    if data is None:
        raise RequestError(f"{path.name} holds its own voxels")
    skipped = _whole(header, HEADER_SIZE, 0)
    kept = {key: value for key, value in header.items() if skipped == -1 or key != HEADER_SIZE}
    lines = (f"{key} = {value}\n" for key, value in {**kept, LAST_KEY: LOCAL}.items())
    yield "".join(lines).encode()
    with data.open("rb") as voxels:
        voxels.seek(max(0, skipped))
        while piece := voxels.read(CHUNK):
            yield piece


def _header(stream: IO[bytes]) -> dict[str, str]:
    """The fields of a header; the stream is behind it then."""
    fields: dict[str, str] = {}
    room = MAX_HEADER
    while LAST_KEY not in fields:
        line = stream.readline(room)
        room -= len(line)
        key, equals, value = decoded(line).partition("=")
        is_whole = line.endswith(b"\n") or key.strip() == LAST_KEY
        if not is_whole or (line.strip() and not equals):
            raise RequestError(f"has no MetaImage header: expected lines of the form Key = Value up to {LAST_KEY}")
        if equals:
            fields[key.strip()] = value.strip()
    return fields


def _beside(path: Path, header: Mapping[str, str]) -> Path | None:
    """The file beside the header that holds the voxels; None if they are behind the header.

    RequestError unless the header names one file of voxels in its own folder, and that exists.
    """
    name = header[LAST_KEY]
    if name.upper() == LOCAL:
        return None
    name = name.removeprefix("./")
    is_plain = name == Path(name).name and not name.startswith(".") and "\\" not in name and "\0" not in name
    if not is_plain or not name.lower().endswith(DATA_SUFFIXES):
        raise RequestError(
            f"has its voxels in {name!r}; expected {LOCAL}, or the name of one file in its own folder that ends in "
            f"{', '.join(DATA_SUFFIXES)}"
        )
    data = path.parent / name
    if not data.is_file():
        raise RequestError(f"has its voxels in {name!r}, which is not beside it; an .mha file holds its own voxels")
    return data


def _shape(header: Mapping[str, str]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape ([channel,] i, j, ...) and the type of the voxels; RequestError if they cannot be read."""
    kind = header.get("ElementType", "")
    if kind not in TYPES:
        raise RequestError(f"holds values of type {kind!r}; expected one of {', '.join(TYPES)}")
    if not _flag(header, ("BinaryData",), default=True):
        raise RequestError("holds voxels as text (BinaryData = False); expected binary ones")
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if _flag(header, MOST_SIGNIFICANT_FIRST) else "<")
    channels = _whole(header, "ElementNumberOfChannels", 1)
    dimensions = _whole(header, "NDims", 0)
    shape = tuple(int(side) for side in _numbers(header, ("DimSize",), dimensions, None))
    return shape if channels == 1 else (channels, *shape), dtype


def _voxels(header: Mapping[str, str], stream: IO[bytes], room: Room) -> NDArray[Any]:
    """The voxels ([channel,] i, j, ...) from a stream that is where they begin, or a header of their own."""
    shape, dtype = _shape(header)
    room.check(shape, dtype)
    skipped = _whole(header, HEADER_SIZE, 0)
    if skipped == -1:
        stream.seek(-int(np.prod(shape, dtype=object)) * dtype.itemsize, 2)
    elif skipped > 0:
        stream.seek(skipped)
    return room.filled(opened(stream, "zlib") if _flag(header, (COMPRESSED,)) else stream, shape, dtype)


def _affine(header: Mapping[str, str]) -> NDArray[np.float64]:
    """The affine (RAS+) of the first three axes."""
    dimensions = _whole(header, "NDims", 0)
    axes = min(dimensions, 3)
    directions = np.reshape(
        _numbers(header, AXES, dimensions**2, np.eye(dimensions).ravel()), (dimensions, dimensions)
    )[:axes, :axes]
    spacing = np.asarray(_numbers(header, SPACING, dimensions, np.ones(dimensions)))[:axes]
    affine = np.eye(4)
    affine[:axes, :axes] = directions.T * spacing
    affine[:axes, 3] = _numbers(header, ORIGIN, dimensions, np.zeros(dimensions))[:axes]
    return LPS_TO_RAS @ affine


def _numbers(
    header: Mapping[str, str], keys: tuple[str, ...], count: int, default: NDArray[np.float64] | None
) -> list[float]:
    """The numbers of the first of some keys that a header has."""
    key = next((key for key in keys if key in header), None)
    if key is None and default is not None:
        return [float(number) for number in default]
    text = "" if key is None else header[key]
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise RequestError(f"has {keys[0] if key is None else key} = {text!r}; expected {count} numbers")
    return numbers


def _whole(header: Mapping[str, str], key: str, default: int) -> int:
    text = header.get(key, str(default))
    if not text.lstrip("-").isdecimal() or len(text) > 12:
        raise RequestError(f"has {key} = {text!r}; expected a whole number")
    return int(text)


def _flag(header: Mapping[str, str], keys: tuple[str, ...], default: bool = False) -> bool:
    """Whether the first of some keys that a header has is true."""
    text = next((header[key] for key in keys if key in header), str(default))
    return text[:1].lower() in ("t", "1", "y")
