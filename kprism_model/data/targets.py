# SPDX-License-Identifier: Apache-2.0
"""What there is to learn in a data set: which slices show a class and which do not, and the objects in a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED
from kprism_model.data.slices import SliceSet

MINIMUM_PIXELS = 20
"""A slice shows a class if it holds this many pixels of it."""

MANY_INSTANCES = 4
"""A structure of many instances, such as nuclei, has at least so many connected components."""

LARGEST_SHARE = 1 / 3
"""No instance holds more than this share of the structure's pixels; the trunk of a tree of vessels does."""


@dataclass(frozen=True)
class Target:
    """A class of one data set, with the slices that show it and those without it, a list entry for each case."""

    part: SliceSet
    column: int
    value: int
    name: str
    shown: Sequence[NDArray[np.int64]]
    absent: Sequence[NDArray[np.int64]]

    def mask(self, row: int) -> NDArray[np.bool_]:
        """Where the class is in a slice, bool (size, size)."""
        mask: NDArray[np.bool_] = self.part.labels[row] == self.value
        return mask


def targets(part: SliceSet) -> list[Target]:
    """The classes of a data set that at least one slice shows."""
    found = []
    for column, (value, name) in enumerate(part.classes.items()):
        shown = by_case(part, np.flatnonzero(part.pixels[:, column] >= MINIMUM_PIXELS))
        absent = by_case(part, np.flatnonzero(part.pixels[:, column] == 0))
        if shown:
            found.append(Target(part, column, value, name, shown, absent))
    return found


def by_case(part: SliceSet, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Slices grouped by case; rows of a case lie together in the store."""
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero(np.diff(part.case[rows])) + 1)


def draw_slice(cases: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> int:
    """A slice of one of the cases, each case with the same chance."""
    return int(rng.choice(cases[rng.integers(len(cases))]))


def union_of(part: SliceSet, row: int, rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """Two or more of the classes that the slice holds, None if it holds fewer."""
    values = np.array(list(part.classes))[part.pixels[row] > 0]
    if len(values) < 2:
        return None
    chosen = rng.choice(values, rng.integers(2, len(values) + 1), replace=False)
    union: NDArray[np.bool_] = np.isin(part.labels[row], chosen)
    return union


def component_of(
    target: Target, row: int, mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.bool_] | None, bool]:
    """One connected component that is large enough, None if the class is a single component.

    Second, whether the structure has many instances here, which a person clicks one by one.
    """
    components, count = ndimage.label(mask, EIGHT_CONNECTED)
    if count < 2:
        return None, False
    areas = np.bincount(components.ravel())[1:]
    areas = areas * (target.part.pixels[row, target.column] / areas.sum())  # pixels as SliceSet counts them
    large = np.flatnonzero(areas >= MINIMUM_PIXELS)
    if not len(large):
        return None, False
    component: NDArray[np.bool_] = components == 1 + rng.choice(large)
    return component, bool(len(large) >= MANY_INSTANCES and areas.max() <= LARGEST_SHARE * areas.sum())
