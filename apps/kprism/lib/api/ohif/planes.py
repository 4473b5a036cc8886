# SPDX-License-Identifier: Apache-2.0
"""Masks between browser and server: a JSON header and only the slices that are needed, compressed.

A message is four bytes (little-endian: the length of the JSON), the JSON, and the planes that it lists as "planes",
each rows x columns bytes, column fastest; gzip over everything. A whole mask of 512 x 512 x 300 voxels has 79 MB.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import RequestError

Grid = tuple[int, int, int]

MAX_HEADER = 1 << 20


def pack(header: Mapping[str, Any], labels: NDArray[np.uint8], planes: list[int]) -> bytes:
    """A message of some planes k of `labels` (column, row, slice)."""
    text = json.dumps({**header, "planes": planes}).encode()
    body = np.ascontiguousarray(labels[:, :, planes].transpose(2, 1, 0)).tobytes()
    return gzip.compress(len(text).to_bytes(4, "little") + text + body, compresslevel=1)


def unpack(message: bytes, grid: Grid) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """(header, labels on `grid`, 0 in planes that are not sent); RequestError if the message does not fit the grid."""
    columns, rows, slices = grid
    limit = 4 + MAX_HEADER + columns * rows * slices
    try:
        inflate = zlib.decompressobj(wbits=31)
        content = inflate.decompress(message, limit)
    except zlib.error as error:
        raise RequestError(f"the planes are not gzip: {error}") from error
    length = int.from_bytes(content[:4], "little")
    try:
        header = json.loads(content[4 : 4 + length])
        planes = header["planes"]
    except (ValueError, LookupError, TypeError) as error:
        raise RequestError("the planes have no JSON header that lists them") from error
    valid = isinstance(planes, list) and all(isinstance(k, int) and 0 <= k < slices for k in planes)
    body = content[4 + length :]
    if not valid or len(body) != len(planes) * rows * columns or len(set(planes)) != len(planes):
        raise RequestError(f"the planes {planes!r:.80} of {len(body)} bytes do not fit {columns} x {rows} x {slices}")
    labels = np.zeros(grid, np.uint8, order="F")
    labels[:, :, planes] = np.frombuffer(body, np.uint8).reshape(len(planes), rows, columns).transpose(2, 1, 0)
    return header, labels


def filled(labels: NDArray[np.uint8]) -> list[int]:
    """The planes k of an index map (i, j, k) that are not empty."""
    return [int(k) for k in np.flatnonzero(labels.any(axis=(0, 1)))]
