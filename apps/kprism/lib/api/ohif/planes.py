# SPDX-License-Identifier: Apache-2.0
"""Masks between browser and server: a JSON header and only the slices that are needed, compressed.

A message is four bytes (little-endian: the length of the JSON), the JSON, and the planes that it lists as "planes",
each rows x columns bytes, column fastest; gzip over everything. A whole mask of 512 x 512 x 300 voxels has 79 MB.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from gzip import GzipFile
from typing import Any

import numpy as np
from isal import igzip, isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.medical_image import planes_of

Grid = tuple[int, int, int]

MAX_HEADER = 1 << 20
GZIP = 31
"""zlib's number for the format gzip with the largest window."""


def pack(header: Mapping[str, Any], labels: SliceMap[np.uint8], planes: Sequence[int]) -> bytes:
    """A message of some planes k of `labels`, which is cut as stored (row j, column i)."""
    text = json.dumps({**header, "planes": list(planes)}).encode()
    deflate = isal_zlib.compressobj(level=1, wbits=GZIP)
    parts = [deflate.compress(len(text).to_bytes(4, "little") + text)]
    parts += [deflate.compress(np.ascontiguousarray(labels.on(k))) for k in planes]
    return b"".join((*parts, deflate.flush()))


def unpack(message: bytes, grid: Grid) -> tuple[dict[str, Any], SliceMap[np.uint8]]:
    """(header, the planes that are sent); RequestError if the message does not fit the grid.

    It is inflated plane by plane, and never further than the grid allows.
    """
    try:
        with igzip.open(io.BytesIO(message)) as stream:
            header = _read_header(stream)
            return header, _read_planes(stream, header["planes"], grid)
    except (OSError, EOFError, zlib.error, IsalError) as error:  # type: ignore[misc]  # the last has no types
        raise RequestError(f"the planes are not gzip: {error}") from error


def _read_header(stream: GzipFile) -> dict[str, Any]:
    length = int.from_bytes(stream.read(4), "little")
    try:
        header: dict[str, Any] = json.loads(stream.read(min(length, MAX_HEADER)))
        header["planes"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RequestError("the planes have no JSON header that lists them") from error
    return header


def _read_planes(stream: GzipFile, planes: Any, grid: Grid) -> SliceMap[np.uint8]:
    columns, rows, slices = grid
    fits = isinstance(planes, list) and all(isinstance(k, int) and 0 <= k < slices for k in planes)
    fits = fits and len(set(planes)) == len(planes)
    read: dict[int, NDArray[np.uint8]] = {}
    for k in planes if fits else ():
        read[k] = np.empty((rows, columns), np.uint8)
        fits = fits and stream.readinto(read[k].data) == rows * columns
    if not fits or stream.read(1):  # the end is read too: gzip's checksum is there
        raise RequestError(f"the planes {planes!r:.80} or their bytes do not fit {columns} x {rows} x {slices}")
    return SliceMap(planes_of(grid), np.dtype(np.uint8), read)
