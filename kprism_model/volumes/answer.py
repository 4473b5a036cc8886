# SPDX-License-Identifier: Apache-2.0
"""Masks of structures in a volume: kept by slice, given in voxels of the stored array, apart from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kprism_model.orientation import SliceOrientation
from kprism_model.predictor import THRESHOLD
from kprism_model.queries import Click
from kprism_model.volumes.cleanup import fill_holes, largest_part
from kprism_model.volumes.patches import Patch

_UNCHANGED = THRESHOLD  # the probability of masks that were not computed


@dataclass(frozen=True, eq=False)
class StructureMask:
    """One structure's answer.

    slices: the mask on each slice that was asked for, `prompted` those among them that hold prompts. confidence: how
    sure the network is, by slice: 1 on prompted slices; slices where nothing was found are left out. before: the mask
    (slice, row, column) that stands on all other slices, or None. clicked: (slice, click) of positive clicks.
    """

    orientation: SliceOrientation = field(repr=False)
    slices: dict[int, Patch] = field(repr=False)
    prompted: tuple[int, ...]
    confidence: dict[int, float] = field(repr=False)
    before: NDArray[np.bool_] | None = field(repr=False)
    clicked: tuple[tuple[int, Click], ...] = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the structure is, bool (i, j, k); a new array each time."""
        mask = np.zeros(self.orientation.shape, bool, order="F")
        self._write(self.orientation.to_slices(mask))
        return mask

    @property
    def changed(self) -> tuple[int, ...]:
        """Slices whose mask was computed, ascending."""
        return tuple(sorted(self.slices))

    def on(self, number: int) -> NDArray[np.bool_]:
        """The mask (row, column) on a slice."""
        if number in self.slices:
            return self.slices[number].mask()
        _, rows, columns = (self.orientation.shape[axis] for axis in self.orientation.axes)
        return np.zeros((rows, columns), bool) if self.before is None else self.before[number]

    def cleaned(self, *, largest: bool, fill: bool) -> StructureMask:
        """The same with only its largest part and those that were clicked, and without holes, on changed slices."""
        whole = np.zeros([self.orientation.shape[axis] for axis in self.orientation.axes], bool)
        self._write(whole)
        clean = whole
        if largest:
            clicks = [(number, int(click.row), int(click.column)) for number, click in self.clicked]
            clean = largest_part(clean, clicks)
        if fill:
            clean = fill_holes(clean)
        slices = {}
        for number, patch in self.slices.items():
            probability = np.where(clean[number], patch.probability(), 0)
            probability[clean[number] & ~whole[number]] = _UNCHANGED
            slices[number] = Patch.of(probability)
        return replace(self, slices=slices)

    def _write(self, view: NDArray[np.bool_]) -> None:
        if self.before is not None:
            view[:] = self.before
        for number, patch in self.slices.items():
            view[number] = patch.mask()


@dataclass(frozen=True, eq=False)
class VolumeAnswer:
    """The masks by name and what it took: slices encoded and rows decoded for this answer."""

    masks: dict[str, StructureMask]
    encoded_slices: int
    decoded_rows: int

    def index_map(self, order: Sequence[str]) -> NDArray[np.uint8]:
        """One map (i, j, k): voxel value n is the n-th name of `order`, 0 is none; earlier names win."""
        if len(order) > 255 or not self.masks:
            raise ValueError(f"need masks and at most 255 names, got {len(self.masks)} and {len(order)}")
        orientation = next(iter(self.masks.values())).orientation
        labels = np.zeros(orientation.shape, np.uint8, order="F")
        for value, name in reversed(list(enumerate(order, start=1))):
            if name in self.masks:
                labels[self.masks[name].mask] = value
        return labels


def separate(masks: Mapping[str, StructureMask]) -> dict[str, StructureMask]:
    """The same masks without overlap on all slices where any of them was computed.

    A voxel of several structures goes to

    1. the structure that it was clicked as;
    2. else one that holds prompts on this slice, before one that was followed to it or not computed there;
    3. else the most probable one, where masks that were not computed count one half;
    4. else the one that the request names first.
    """
    result = dict(masks)
    if len(masks) == 1:
        return result
    for number in sorted({number for mask in masks.values() for number in mask.slices}):
        scores = {name: score for name, mask in masks.items() if (score := _score(mask, number)).any()}
        if len(scores) < 2:
            continue
        stack = np.stack(list(scores.values()))
        winner = stack.argmax(axis=0)
        for row, name in enumerate(scores):
            lost = (stack[row] > 0) & (winner != row)
            if lost.any():
                result[name] = _without(result[name], number, lost)
    return result


def _score(mask: StructureMask, number: int) -> NDArray[np.float32]:
    """By how much a structure claims each pixel of its mask, by the rules of `separate`; 0 elsewhere."""
    patch = mask.slices.get(number)
    probability = np.float32(_UNCHANGED) if patch is None else patch.probability()
    score = np.where(mask.on(number), probability + (1 if number in mask.prompted else 0), 0).astype(np.float32)
    for where, click in mask.clicked:
        if where == number and score[int(click.row), int(click.column)] > 0:
            score[int(click.row), int(click.column)] = 3
    return score


def _without(mask: StructureMask, number: int, lost: NDArray[np.bool_]) -> StructureMask:
    patch = mask.slices.get(number)
    probability = mask.on(number).astype(np.float32) if patch is None else patch.probability()
    return replace(mask, slices={**mask.slices, number: Patch.of(np.where(lost, 0, probability))})
