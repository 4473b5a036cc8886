# SPDX-License-Identifier: Apache-2.0
"""Index maps: their values, and other numbers for them. Both by slice, and on a grid (i, j, k), plane by plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.volumes.slice_map import SliceMap

MAX_LABELS = 255
"""An index map has eight bits a voxel."""


def values_in(labels: SliceMap[np.uint8] | NDArray[np.uint8]) -> set[int]:
    """The values of an index map other than 0."""
    if isinstance(labels, SliceMap):
        return set().union(*map(values_in_plane, labels.slices.values()))
    return set().union(*values_by_plane(labels))


def values_by_plane(labels: NDArray[np.uint8]) -> list[set[int]]:
    """For each plane k of an index map (i, j, k), its values other than 0."""
    return [values_in_plane(labels[:, :, k]) for k in range(labels.shape[2])]


def values_in_plane(plane: NDArray[np.unsignedinteger[Any] | np.bool_]) -> set[int]:
    """The values of a plane other than 0."""
    voxels = plane.ravel(order="K")
    starts = voxels[1:] != voxels[:-1]  # of the runs of equal values: few, unless the plane is noise
    if np.count_nonzero(starts) < voxels.size // 16:
        return {int(voxels[0]), *map(int, voxels[1:][starts])} - {0}
    return {int(value) for value in np.flatnonzero(np.bincount(voxels)) if value}


def renumbered(labels: SliceMap[np.uint8], table: NDArray[np.uint8]) -> SliceMap[np.uint8]:
    """The index map with `table[value]` for every value, where `table[0]` is 0."""
    return labels.mapped(lambda values: table[values], np.uint8)


def mask_of(labels: SliceMap[np.uint8], value: int, *more: int) -> SliceMap[np.bool_]:
    """Where an index map has a value, or one of `more`, on the slices that have it."""
    masks = {number: values == value for number, values in labels.slices.items()}
    if more:
        masks = {number: mask | np.isin(labels.slices[number], more) for number, mask in masks.items()}
    return SliceMap(labels.orientation, np.dtype(bool), {k: mask for k, mask in masks.items() if mask.any()})
