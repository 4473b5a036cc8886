# SPDX-License-Identifier: Apache-2.0
"""Masks between browser and server: a JSON header and only the slices that are needed, compressed.

A message is four bytes (little-endian: the length of the JSON), the JSON, and the planes that it lists as "planes",
each rows x columns bytes, column fastest; gzip over everything. A whole mask of 512 x 512 x 300 voxels has 79 MB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.medical_image import planes_of

Grid = tuple[int, int, int]

MAX_HEADER = 1 << 20

GZIP = b"\x1f\x8b"
"""The first bytes of every gzip stream."""


def pack(header: Mapping[str, Any], labels: SliceMap[np.uint8], planes: Sequence[int]) -> bytes:
    """A message of some planes k of `labels`, which is cut as stored (row j, column i)."""
    text = json.dumps({**header, "planes": list(planes)}).encode()
    packer = isal_zlib.compressobj(level=1, wbits=31)
    parts = [packer.compress(len(text).to_bytes(4, "little") + text)]
    parts += [packer.compress(np.ascontiguousarray(labels.on(k)).tobytes()) for k in planes]
    return b"".join([*parts, packer.flush()])


def unpack(message: bytes, grid: Grid) -> tuple[dict[str, Any], SliceMap[np.uint8]]:
    """(header, the planes that are sent); RequestError if the message does not fit the grid."""
    columns, rows, slices = grid
    limit = 4 + MAX_HEADER + columns * rows * slices
    if not message.startswith(GZIP):
        raise RequestError(f"the planes are not gzip: they start with {message[:2]!r}")
    try:
        inflate = isal_zlib.decompressobj(wbits=31)
        content = inflate.decompress(message, limit)
    except IsalError as error:  # type: ignore[misc]  # its types are missing
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
    sent = np.frombuffer(body, np.uint8).reshape(len(planes), rows, columns)
    return header, SliceMap(planes_of(grid), np.dtype(np.uint8), dict(zip(planes, sent, strict=True)))
