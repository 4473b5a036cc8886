# SPDX-License-Identifier: Apache-2.0
"""Index maps: their values, and other numbers for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kprism_model.volumes.slice_map import SliceMap

MAX_LABELS = 255
"""An index map has eight bits a voxel."""


def values_in(labels: SliceMap[np.uint8]) -> set[int]:
    """The values of an index map other than 0."""
    present = np.zeros(256, bool)
    for values in labels.slices.values():
        present |= np.bincount(values.ravel(order="K"), minlength=256) > 0
    return {int(value) for value in np.flatnonzero(present) if value}


def renumbered(labels: SliceMap[np.uint8], table: NDArray[np.uint8]) -> SliceMap[np.uint8]:
    """The index map with `table[value]` for every value, where `table[0]` is 0."""
    if np.array_equal(table[: len(table)], np.arange(len(table))):
        return labels
    return labels.mapped(lambda values: table[values], np.uint8)


def mask_of(labels: SliceMap[np.uint8], value: int) -> SliceMap[np.bool_]:
    """Where an index map has a value, on the slices that have it."""
    masks = {number: values == value for number, values in labels.slices.items()}
    return SliceMap(labels.orientation, np.dtype(bool), {k: mask for k, mask in masks.items() if mask.any()})
