# SPDX-License-Identifier: Apache-2.0
"""Index maps (i, j, k), processed plane by plane: a whole volume at once would take eight bytes for each voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_LABELS = 255
"""An index map has eight bits a voxel."""


def values_in(labels: NDArray[np.uint8]) -> set[int]:
    """The values of an index map other than 0."""
    return set().union(*values_by_plane(labels))


def values_by_plane(labels: NDArray[np.uint8]) -> list[set[int]]:
    """For each plane k of an index map, its values other than 0."""
    return [values_in_plane(labels[:, :, k]) for k in range(labels.shape[2])]


def values_in_plane(plane: NDArray[np.unsignedinteger[Any] | np.bool_]) -> set[int]:
    """The values of a plane other than 0."""
    voxels = plane.ravel(order="K")
    starts = voxels[1:] != voxels[:-1]  # of the runs of equal values: few, unless the plane is noise
    if np.count_nonzero(starts) < voxels.size // 16:
        return {int(voxels[0]), *map(int, voxels[1:][starts])} - {0}
    return {int(value) for value in np.flatnonzero(np.bincount(voxels)) if value}


def renumbered(labels: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The index map with `table[value]` for every value, where `table[0]` is 0."""
    result = np.zeros(labels.shape, np.uint8, order="F")
    for k in _filled_planes(labels):
        result[:, :, k] = table[labels[:, :, k]]
    return result


def _filled_planes(labels: NDArray[np.uint8]) -> list[int]:
    return [k for k in range(labels.shape[2]) if labels[:, :, k].any()]
