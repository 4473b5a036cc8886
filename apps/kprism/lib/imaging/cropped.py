# SPDX-License-Identifier: Apache-2.0
"""Voxels of a part of a grid, put back on the whole grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Offset = tuple[int, int, int]

MAX_SHIFT = 1e5
"""Voxels between the first one of a part and that of its grid; no grid is larger."""


def offset_between(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Offset | None:
    """Where the first voxel of an affine lies on the grid of another one; None if it is too far away to be a part."""
    away = np.linalg.solve(whole[:3, :3], part[:3, 3] - whole[:3, 3])
    if not np.abs(away).max() < MAX_SHIFT:
        return None
    i, j, k = (int(step) for step in np.rint(away))
    return i, j, k


def pasted(part: NDArray[Any], offset: Offset, grid: tuple[int, int, int]) -> NDArray[Any] | None:
    """A grid of zeros that holds a part (i, j, k) from `offset` on; None if voxels that are not 0 lie outside."""
    sides = zip(offset, part.shape, grid, strict=True)
    inside = [(max(0, -first), max(0, min(side, length - first))) for first, side, length in sides]
    kept = part[tuple(slice(first, max(first, last)) for first, last in inside)]
    if np.count_nonzero(part) != np.count_nonzero(kept):
        return None
    whole = np.zeros(grid, part.dtype, order="F")
    if kept.size:
        starts = [max(0, first) for first in offset]
        whole[tuple(slice(start, start + side) for start, side in zip(starts, kept.shape, strict=True))] = kept
    return whole


def moved(affine: NDArray[np.float64], offset: Offset) -> NDArray[np.float64]:
    """The affine of the whole grid, from that of a part which begins at `offset`."""
    back = np.eye(4)
    back[:3, 3] = np.negative(offset)
    return np.asarray(affine @ back)
