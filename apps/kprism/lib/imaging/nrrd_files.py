# SPDX-License-Identifier: Apache-2.0
"""Reads NRRD files whose voxels lie in the file itself."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS
from lib.imaging.segments import index_map, segments_in
from lib.imaging.stored import Room, Stored, decoded, opened

DETACHED = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")
"""NRRD fields that take voxels from another file, which could be any file of the server, or from another offset."""

TEXT = ("ascii", "text", "txt")
"""NRRD encodings whose voxels are numbers as text."""

ANATOMICAL = {"left": "L", "right": "R", "anterior": "A", "posterior": "P", "superior": "S", "inferior": "I"}
"""Words in the names of anatomical spaces, and their letters."""

TOWARDS_RAS = {"R": (0, 1.0), "L": (0, -1.0), "A": (1, 1.0), "P": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0)}
"""The letter that an axis of a space runs to -> the axis of NIfTI's coordinates, and the sign in these."""

UNNAMED = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
"""Spaces that do not say how the patient lies in them; 3D Slicer and ITK take their axes as those of DICOM (LPS)."""

_TYPES = nrrd.reader._TYPEMAP_NRRD2NUMPY


def read_nrrd(path: Path, room: Room) -> Stored:
    """The voxels of a NRRD file; RequestError, or what pynrrd raises, for a file that cannot be read."""
    with path.open("rb") as stream:
        header = read_header(stream)
        for key in DETACHED:
            if header.get(key):
                raise RequestError(
                    f"names data outside of the file ({key}: {header[key]}); expected voxels in the file itself"
                )
        array = _voxels(header, stream, room)
    affine, spatial, placed = _place(header, array.ndim)
    segments = segments_in(header)
    others = np.flatnonzero(~spatial)
    array = np.moveaxis(array, others, range(array.ndim - len(others), array.ndim))  # colour or time behind space
    file_labels = None
    if segments:
        array, file_labels = index_map(array, segments, header, room.allocate)
    colour = not segments and len(others) == 1 and array.shape[-1] in (3, 4) and array.dtype == np.uint8
    return Stored(array, affine, None, colour, placed, file_labels=file_labels)


def _place(header: dict[str, Any], axes: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], bool]:
    """The affine (RAS+), which axes of the array are spatial, and whether the header says where the image lies."""
    to_ras = _to_ras(str(header.get("space", "left-posterior-superior")))
    spatial = np.array([kind in ("domain", "space") for kind in header.get("kinds", ["domain"] * axes)])
    affine = np.eye(4)
    if "space directions" in header:
        directions = np.asarray(header["space directions"], float)
        if directions.ndim != 2 or len(directions) != axes or not 1 <= directions.shape[1] <= 4:
            raise RequestError(
                f"has space directions of shape {directions.shape}; expected one for each of {axes} axes"
            )
        directions = directions[:, :3]  # the fourth coordinate is time
        spatial = np.isfinite(directions).all(axis=1)
        directions = directions[spatial][:3]
        origin = np.asarray(header.get("space origin", np.zeros(3)), float).ravel()[:3]
        affine[: directions.shape[1], : len(directions)] = directions.T
        affine[: len(origin), 3] = origin
    else:
        axes_in_space = np.flatnonzero(spatial)[:3]
        if "spacings" in header:
            affine[range(len(axes_in_space)), range(len(axes_in_space))] = np.asarray(header["spacings"])[axes_in_space]
        affine[: len(axes_in_space), 3] = _first_voxel(header, axes_in_space)
    if "space directions" not in header:  # then a space says nothing about the axes of the array
        return LPS_TO_RAS @ affine, spatial, False
    return to_ras @ affine, spatial, True


def _first_voxel(header: dict[str, Any], axes: NDArray[np.intp]) -> NDArray[np.float64]:
    """The middle of the first voxel on each of some axes, as ITK finds it in a header without a space; 0 if unknown.

    A minimum is that of the voxel's edge (`cell`, also if the header does not say), or of its middle (`node`).
    """
    none = [np.nan] * len(header["sizes"])
    lowest, highest, spacings = (np.asarray(header.get(key, none)) for key in ("axis mins", "axis maxs", "spacings"))
    if any(len(numbers) < len(none) for numbers in (lowest, highest, spacings)):
        return np.zeros(len(axes))
    centres = header.get("centerings", header.get("centers", none))
    at_edge = np.array([centre != "node" for centre in centres] + [True] * len(none))[: len(none)]
    steps = np.where(at_edge, header["sizes"], np.subtract(header["sizes"], 1))
    with np.errstate(all="ignore"):
        spacings = np.where(np.isfinite(spacings), spacings, (highest - lowest) / steps)
    first = (lowest + np.where(at_edge, spacings / 2, 0))[axes]
    return first if np.isfinite(first).all() else np.zeros(len(axes))


def _to_ras(space: str) -> NDArray[np.float64]:
    """The matrix from a space's coordinates to NIfTI's; RequestError for a space that is not known."""
    name = space.strip().lower().removesuffix("-time")
    if name in UNNAMED:
        return LPS_TO_RAS
    words = name.split("-")
    letters = [ANATOMICAL.get(word, "?") for word in words] if len(words) == 3 else list(name.upper())
    if len(letters) == 4 and letters[-1] == "T":
        letters.pop()
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, letter in enumerate(letters[:3]):
        row, sign = TOWARDS_RAS.get(letter, (3, 0.0))
        matrix[row, axis] = sign
    if len(letters) != 3 or abs(np.linalg.det(matrix)) != 1:
        raise RequestError(
            f"has the space {space!r}; expected an anatomical one such as left-posterior-superior or LPS, "
            "scanner-xyz, 3D-right-handed or 3D-left-handed"
        )
    return matrix


def segment_names(path: Path) -> dict[int, str]:
    """The names of the segments in a NRRD file, numbered from 1; empty if it names none or cannot be read."""
    try:
        status = path.stat()
        return dict(enumerate(_segment_names(path, status.st_mtime_ns, status.st_size), 1))
    except OSError:
        return {}


@lru_cache(maxsize=10_000)
def _segment_names(path: Path, changed: int, size: int) -> tuple[str, ...]:
    try:
        with path.open("rb") as stream:
            return tuple(segment.name for segment in segments_in(read_header(stream)))
    except (nrrd.NRRDError, ValueError, LookupError, StopIteration):
        return ()


def read_header(stream: IO[bytes]) -> dict[str, Any]:
    """The header of a NRRD file, and `stream` behind it. Names are UTF-8, of which pynrrd itself keeps ASCII alone."""
    return dict(nrrd.read_header(map(decoded, iter(stream.readline, b""))))


def _voxels(header: dict[str, Any], stream: IO[bytes], room: Room) -> NDArray[Any]:
    """The voxels after a header; pynrrd itself would decompress data of any size."""
    shape = tuple(int(side) for side in header["sizes"])
    dtype = np.dtype(_TYPES.get(header["type"], "V8"))
    if header.get("endian") == "big":
        dtype = dtype.newbyteorder(">")
    if header["dimension"] != len(shape):
        raise RequestError(f"has {len(shape)} sizes; expected one for each of its {header['dimension']} axes")
    room.check(shape, dtype)
    encoding = header["encoding"].lower()
    if dtype.itemsize > 1 and "endian" not in header and encoding not in TEXT:
        raise RequestError("does not say whether its voxels are little or big endian")
    if encoding in ("gzip", "gz"):
        return room.filled(opened(stream, "gzip"), shape, dtype)
    if encoding in ("bzip2", "bz2"):
        return room.filled(opened(stream, "bzip2"), shape, dtype)
    if encoding == "raw":
        return room.filled(stream, shape, dtype)
    return np.asarray(nrrd.read_data(header, stream, index_order="F"))
