# SPDX-License-Identifier: Apache-2.0
"""The targets of training in a data set: slices with and without a class, and the objects in a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED
from kprism_model.data.slices import SliceSet

MINIMUM_PIXELS = 20
"""A slice shows a class if it has at least this many pixels of it."""

MANY_INSTANCES = 4
"""A structure of many instances, such as nuclei, has at least this many connected components."""

LARGEST_SHARE = 1 / 3
"""No instance has more than this share of the structure's pixels (the trunk of a vessel tree has)."""


@dataclass(frozen=True)
class Target:
    """A class of one data set, with the slices that show it and those without it: one array for each case."""

    slice_set: SliceSet
    column: int
    value: int
    name: str
    shown: Sequence[NDArray[np.int64]]
    absent: Sequence[NDArray[np.int64]]

    def mask(self, row: int) -> NDArray[np.bool_]:
        """The mask of the class in a slice, bool (size, size)."""
        mask: NDArray[np.bool_] = self.slice_set.labels[row] == self.value
        return mask


def targets(slice_set: SliceSet) -> list[Target]:
    """The classes of a data set that at least one slice shows."""
    of_set = []
    for column, (value, name) in enumerate(slice_set.classes.items()):
        shown = by_case(slice_set, np.flatnonzero(slice_set.pixels[:, column] >= MINIMUM_PIXELS))
        absent = by_case(slice_set, np.flatnonzero(slice_set.pixels[:, column] == 0))
        if shown:
            of_set.append(Target(slice_set, column, value, name, shown, absent))
    return of_set


def by_case(slice_set: SliceSet, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Slices grouped by case; the rows of a case are consecutive in the store."""
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero(np.diff(slice_set.case[rows])) + 1)


def draw_slice(cases: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> int:
    """A random slice of a random case; all cases are equally likely."""
    return int(rng.choice(cases[rng.integers(len(cases))]))


def union_of(slice_set: SliceSet, row: int, rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """The union of two or more classes of the slice; None if it has fewer."""
    values = np.array(list(slice_set.classes))[slice_set.pixels[row] > 0]
    if len(values) < 2:
        return None
    chosen = rng.choice(values, rng.integers(2, len(values) + 1), replace=False)
    union: NDArray[np.bool_] = np.isin(slice_set.labels[row], chosen)
    return union


def component_of(
    target: Target, row: int, mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.bool_] | None, bool]:
    """A random connected component that is large enough; None if the class is a single component.

    The second result is whether the structure has many instances in this slice, which a person clicks one by one.
    """
    components, count = ndimage.label(mask, EIGHT_CONNECTED)
    if count < 2:
        return None, False
    areas = np.bincount(components.ravel())[1:]
    areas = areas * (target.slice_set.pixels[row, target.column] / areas.sum())  # pixels as SliceSet counts them
    large = np.flatnonzero(areas >= MINIMUM_PIXELS)
    if not len(large):
        return None, False
    component: NDArray[np.bool_] = components == 1 + rng.choice(large)
    return component, bool(len(large) >= MANY_INSTANCES and areas.max() <= LARGEST_SHARE * areas.sum())
