# SPDX-License-Identifier: Apache-2.0
"""Masks of structures in a volume: stored by slice, returned in voxels of the stored array, without overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from kprism_model.orientation import SliceOrientation
from kprism_model.predictor import THRESHOLD
from kprism_model.queries import Click
from kprism_model.volumes.cleanup import fill_holes, keep_largest_component
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.slice_map import SliceMap

_PREVIOUS_PROBABILITY = THRESHOLD
"""The probability of pixels of the previous mask that were not computed."""
_CLICKED_SCORE = 3
"""The score of a clicked pixel; all others are at most 2."""


@dataclass(frozen=True, eq=False)
class StructureMask:
    """The mask of one structure.

    slices: the mask of each computed slice; `prompted` are the slices among them with prompts. confidence: by slice, 1
    on prompted slices; slices without the structure are left out. previous_mask: the mask on all other slices, or None.
    positive_clicks: (slice, click).
    """

    orientation: SliceOrientation = field(repr=False)
    slices: dict[int, Patch] = field(repr=False)
    prompted: tuple[int, ...]
    confidence: dict[int, float] = field(repr=False)
    previous_mask: SliceMap[np.bool_] | None = field(repr=False)
    positive_clicks: tuple[tuple[int, Click], ...] = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask of the whole volume, bool (i, j, k); a new array each time."""
        return self.by_slice().volume()

    def by_slice(self) -> SliceMap[np.bool_]:
        """The mask of the whole volume, slice by slice."""
        computed = {number: patch.mask() for number, patch in self.slices.items()}
        before = self.previous_mask or SliceMap(self.orientation, np.dtype(bool))
        return before.with_slices(computed)

    def parts(self) -> Iterator[tuple[int, tuple[slice, slice], NDArray[np.bool_]]]:
        """Each slice of the mask as its number, the rows and columns that can hold the mask, and the mask there."""
        for number, mask in (self.previous_mask.slices if self.previous_mask else {}).items():
            if number not in self.slices:
                yield number, (slice(None), slice(None)), mask
        for number, patch in self.slices.items():
            yield number, patch.box, patch.values >= THRESHOLD

    @property
    def changed(self) -> tuple[int, ...]:
        """The slices whose mask was computed, ascending."""
        return tuple(sorted(self.slices))

    def on(self, number: int) -> NDArray[np.bool_]:
        """The mask (row, column) on a slice."""
        if number in self.slices:
            return self.slices[number].mask()
        before = self.previous_mask or SliceMap(self.orientation, np.dtype(bool))
        return before.on(number)

    def cleaned(self, *, largest: bool, fill: bool) -> StructureMask:
        """A copy whose computed slices keep only the largest and the clicked components, and have no holes."""
        whole = self.orientation.to_slices(self.mask)
        clean = whole
        if largest:
            points = [(number, int(click.row), int(click.column)) for number, click in self.positive_clicks]
            clean = keep_largest_component(clean, points)
        if fill:
            clean = fill_holes(clean)
        slices = {}
        for number, patch in self.slices.items():
            probability = np.where(clean[number], patch.probability(), 0)
            probability[clean[number] & ~whole[number]] = _PREVIOUS_PROBABILITY
            slices[number] = Patch.of(probability)
        return replace(self, slices=slices)


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """The masks by name, and the passes that they took: slices encoded and rows decoded for this request."""

    masks: dict[str, StructureMask]
    encoded_slices: int
    decoded_rows: int

    def index_map(self, order: Sequence[str]) -> NDArray[np.uint8]:
        """One map (i, j, k): value n is the n-th name of `order`, 0 is background; earlier names win."""
        return self.labels(order).volume()

    def labels(self, order: Sequence[str]) -> SliceMap[np.uint8]:
        """The same map slice by slice: all slices where a mask was computed, or was before."""
        if len(order) > 255 or not self.masks:
            raise ValueError(f"need masks and at most 255 names, got {len(self.masks)} and {len(order)}")
        orientation = next(iter(self.masks.values())).orientation
        slices: dict[int, NDArray[np.uint8]] = {}
        for value, name in reversed(list(enumerate(order, start=1))):
            if name not in self.masks:
                continue
            for number, box, mask in self.masks[name].parts():
                labels = slices.setdefault(number, np.zeros(orientation.stack_shape[1:], np.uint8))
                labels[box][mask] = value
        return SliceMap(orientation, np.dtype(np.uint8), slices)


def resolve_overlaps(masks: Mapping[str, StructureMask]) -> dict[str, StructureMask]:
    """The masks without overlap on every slice where at least one of them was computed.

    A pixel that several structures claim goes to

    1. the structure that was clicked there;
    2. else a structure with prompts on this slice, before one that was propagated to it or not computed there;
    3. else the most probable structure; masks that were not computed count one half;
    4. else the structure that comes first in `masks`.
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
    """How strongly a structure claims each pixel of its mask, by the rules of `resolve_overlaps`; 0 elsewhere."""
    patch = mask.slices.get(number)
    probability = np.float32(_PREVIOUS_PROBABILITY) if patch is None else patch.probability()
    score = np.where(mask.on(number), probability + (1 if number in mask.prompted else 0), 0).astype(np.float32)
    for clicked_slice, click in mask.positive_clicks:
        if clicked_slice == number and score[int(click.row), int(click.column)] > 0:
            score[int(click.row), int(click.column)] = _CLICKED_SCORE
    return score


def _without(mask: StructureMask, number: int, lost: NDArray[np.bool_]) -> StructureMask:
    patch = mask.slices.get(number)
    probability = mask.on(number).astype(np.float32) if patch is None else patch.probability()
    return replace(mask, slices={**mask.slices, number: Patch.of(np.where(lost, 0, probability))})
