# SPDX-License-Identifier: Apache-2.0
"""Masks between browser and server: a JSON header and only the slices that are needed, compressed.

A message is four bytes (little-endian: the length of the JSON), the JSON, and the planes that it lists as "planes",
each rows x columns bytes, column fastest; gzip over everything. A whole mask of 512 x 512 x 300 voxels has 79 MB.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping
from gzip import GzipFile
from typing import Any

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from lib.errors import RequestError

Grid = tuple[int, int, int]

MAX_HEADER = 1 << 20
GZIP = 31
"""zlib's number for the format gzip with the largest window."""


def pack(header: Mapping[str, Any], labels: NDArray[np.uint8], planes: list[int]) -> bytes:
    """A message of some planes k of `labels` (column, row, slice)."""
    text = json.dumps({**header, "planes": planes}).encode()
    deflate = isal_zlib.compressobj(level=1, wbits=GZIP)
    parts = [deflate.compress(len(text).to_bytes(4, "little") + text)]
    parts += [deflate.compress(np.ascontiguousarray(labels[:, :, k].T)) for k in planes]
    return b"".join((*parts, deflate.flush()))


def unpack(message: bytes, grid: Grid) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """(header, labels on `grid`, 0 in planes that are not sent); RequestError if the message does not fit the grid.

    It is inflated plane by plane, and never further than the grid allows.
    """
    try:
        with igzip.open(io.BytesIO(message)) as stream:
            header = _read_header(stream)
            return header, _read_planes(stream, header["planes"], grid)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"the planes are not gzip: {error}") from error


def _read_header(stream: GzipFile) -> dict[str, Any]:
    length = int.from_bytes(stream.read(4), "little")
    try:
        header: dict[str, Any] = json.loads(stream.read(min(length, MAX_HEADER)))
        header["planes"]
    except (ValueError, LookupError, TypeError) as error:
        raise RequestError("the planes have no JSON header that lists them") from error
    return header


def _read_planes(stream: GzipFile, planes: Any, grid: Grid) -> NDArray[np.uint8]:
    columns, rows, slices = grid
    fits = isinstance(planes, list) and all(isinstance(k, int) and 0 <= k < slices for k in planes)
    fits = fits and len(set(planes)) == len(planes)
    labels = np.zeros(grid, np.uint8, order="F")
    if fits:  # the end is read too: gzip's checksum is there
        fits = all(stream.readinto(labels[:, :, k].T.data) == rows * columns for k in planes) and not stream.read(1)
    if not fits:
        raise RequestError(f"the planes {planes!r:.80} or their bytes do not fit {columns} x {rows} x {slices}")
    return labels


def filled(labels: NDArray[np.uint8]) -> list[int]:
    """The planes k of an index map (i, j, k) that are not empty."""
    return [int(k) for k in np.flatnonzero(labels.any(axis=(0, 1)))]
