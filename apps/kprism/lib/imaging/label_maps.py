# SPDX-License-Identifier: Apache-2.0
"""Index maps (i, j, k), processed plane by plane: a whole volume at once would take eight bytes for each voxel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_LABELS = 255
"""An index map has eight bits a voxel."""


def values_in(labels: NDArray[np.uint8]) -> set[int]:
    """The values of an index map other than 0."""
    present = np.zeros(256, bool)
    for k in _filled_planes(labels):
        present |= np.bincount(labels[:, :, k].ravel(order="K"), minlength=256) > 0
    return {int(value) for value in np.flatnonzero(present) if value}


def renumbered(labels: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The index map with `table[value]` for every value, where `table[0]` is 0."""
    result = np.zeros(labels.shape, np.uint8, order="F")
    for k in _filled_planes(labels):
        result[:, :, k] = table[labels[:, :, k]]
    return result


def _filled_planes(labels: NDArray[np.uint8]) -> list[int]:
    return [k for k in range(labels.shape[2]) if labels[:, :, k].any()]
