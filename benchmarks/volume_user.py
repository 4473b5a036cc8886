# SPDX-License-Identifier: Apache-2.0
"""The simulated user in a volume: where the next click goes, and how the mask of the volume follows from all clicks.

Each click goes to the largest error on a slice (`kprism_model.interaction.clicks`). The slice is chosen by one of
`SLICE_CHOICES`. A user who is sent to a slice clicks there once at least: if nothing is wrong, that click confirms the
slice. The user goes on after three clicks on a slice, or as soon as its Dice is 0.9.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.volume_samples import Sample
from kprism_model.intensity import Slices
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from kprism_model.predictor import Predictor
from kprism_model.queries import Click
from kprism_model.volumes.next_slice import next_slice
from kprism_model.volumes.predictor import (
    PropagationRules,
    StructureMask,
    StructurePrompts,
    VolumePredictor,
    VoxelClick,
)
from kprism_model.volumes.shapes import interpolate_masks

TARGET_DICE = 0.85
"""Of a volume, for the count of clicks."""
SLICE_DICE = 0.9
"""A user who sees a slice as good as this goes on to another one."""
CLICKS_ON_A_SLICE = 3
"""So many clicks on a slice, then another slice."""

BoolArray = NDArray[np.bool_]
SliceChoice = Literal["worst", "proposed", "spread"]


@dataclass(frozen=True)
class Method:
    """How the mask of a volume follows from clicks: propagated by `rules`; else on clicked slices alone (None).

    `named` tells the structure's name, which may be a class that the network knows. `interpolated` blends the shapes on
    clicked slices linearly on the slices between them. `memoryless` goes outwards from the clicked slices with the mask
    before as the previous mask of interactive mode, and nothing else.
    """

    rules: PropagationRules | None = None
    named: bool = False
    interpolated: bool = False
    memoryless: bool = False


METHODS = {
    "propagated": Method(PropagationRules(), named=True),
    "without its name": Method(PropagationRules()),
    "without adaptation": Method(PropagationRules(adaptation=None), named=True),
    "without both": Method(PropagationRules(adaptation=None)),
    "every slice clicked": Method(),
    "shapes interpolated": Method(interpolated=True),
    "previous mask only": Method(memoryless=True),
}

CLICKED_METHODS = ("propagated", "every slice clicked", "shapes interpolated")
"""The methods whose clicks are counted."""


class UserInVolume:
    """Clicks on one structure, and the mask (slice, row, column) after them."""

    def __init__(self, predictor: Predictor, sample: Sample, method: Method) -> None:
        self.true = sample.true
        self.middle = sample.middle
        self.clicks: list[VoxelClick] = []
        self.mask = np.zeros_like(sample.true)
        self.answer: StructureMask | None = None
        self.seconds = 0.0
        self.propagated = 0
        self._method, self._predictor = method, predictor
        known = method.named and sample.structure in predictor.registry
        self._known_class = sample.structure if known else None
        self._images = sample.volume.images
        self._volume = VolumePredictor(predictor, rules=method.rules)
        self._volume.use_volume(sample.volume)
        self._orientation = sample.volume.orientation

    @property
    def dice(self) -> float:
        """Of the whole volume."""
        return dice(self.mask, self.true)

    def slice_dice(self, number: int) -> float:
        """Of a slice; 1 if neither mask shows the structure there."""
        return dice(self.mask[number], self.true[number])

    def slice_of(self, click: VoxelClick) -> int:
        """The slice of a click."""
        return self._orientation.locate(click.voxel)[0]

    def click(self, number: int) -> None:
        """Click on the largest error of a slice; if nothing is wrong, confirm the structure or its absence."""
        empty = np.zeros_like(self.true[number])
        found = next_click(self.mask[number], self.true[number]) or next_click(empty, self.true[number])
        row, column, positive = found or (empty.shape[0] // 2, empty.shape[1] // 2, False)
        i, j, k = self._orientation.points_to_volume((number, np.floor(row), np.floor(column))).astype(int).tolist()
        self.clicks.append(VoxelClick((i, j, k), positive))

    def predict(self, *, propagate: bool = True, progress: Callable[[int], object] | None = None) -> None:
        """Replace the mask by the prediction for all clicks; `propagate` = False: on the clicked slices alone."""
        start = time.perf_counter()
        extent: Literal["volume", "slice"] = "volume" if propagate and self._method.rules else "slice"
        prompts = {"structure": StructurePrompts(self.clicks, known_class=self._known_class)}
        self.answer = self._volume.segment(prompts, extent=extent, progress=progress).masks["structure"]
        self.seconds = time.perf_counter() - start
        self.propagated = len(self.answer.confidence) - len(self.answer.prompted)
        self.mask = self._orientation.to_slices(self.answer.mask)
        if self._method.interpolated and propagate:
            self.mask = between_slices(self.mask, self.answer.prompted)
        if self._method.memoryless and propagate:
            self.mask = by_previous_masks(self._predictor, self._images, self.mask, self.answer.prompted)


def clicks_to_target(user: UserInVolume, choice: SliceChoice, limit: int) -> int | None:
    """Clicks until the volume reaches the target Dice; None if `limit` clicks do not reach it."""
    number, on_slice = user.middle, 0
    for count in range(1, limit + 1):
        if user.clicks and (choice == "worst" or on_slice == CLICKS_ON_A_SLICE or user.slice_dice(number) > SLICE_DICE):
            number, on_slice = SLICE_CHOICES[choice](user), 0
        user.click(number)
        user.predict()
        on_slice += 1
        if user.dice >= TARGET_DICE:
            return count
    return None


def worst(user: UserInVolume) -> int:
    """The slice with the most wrong pixels, which only somebody who knows the true mask can name."""
    return int((user.mask != user.true).sum(axis=(1, 2)).argmax())


def proposed(user: UserInVolume) -> int:
    """The slice that `kprism_model.volumes.next_slice` proposes; where all is certain, as without advice."""
    assert user.answer is not None  # there are clicks
    number = next_slice(user.answer)
    return spread(user) if number is None else number


def spread(user: UserInVolume) -> int:
    """The middle of the largest gap between clicked slices, or between one and an end of the mask: without advice.

    Where there is no gap, the clicked slice with the fewest clicks.
    """
    assert user.answer is not None  # there are clicks
    prompted = user.answer.prompted
    shown = [*np.flatnonzero(user.mask.any(axis=(1, 2))).tolist(), *prompted]
    stops = sorted({min(shown) - 1, *prompted, max(shown) + 1})
    width, first = max(((second - first, first) for first, second in pairwise(stops)), key=lambda gap: gap[0])
    if width > 1:
        return int(first + width // 2)
    clicked = Counter(user.slice_of(click) for click in user.clicks)
    return min(clicked, key=lambda number: clicked[number])


def between_slices(mask: BoolArray, prompted: Sequence[int]) -> BoolArray:
    """The mask with shapes that are interpolated between clicked slices; beyond the outermost ones there is nothing."""
    filled = mask.copy()
    for first, second in pairwise(prompted):
        if mask[first].any() and mask[second].any():
            shares = np.arange(1, second - first) / (second - first)
            filled[first + 1 : second] = interpolate_masks(mask[first], mask[second], shares) > 0
    return filled


def by_previous_masks(predictor: Predictor, images: Slices, mask: BoolArray, prompted: Sequence[int]) -> BoolArray:
    """The mask with slices predicted outwards from clicked ones, from the mask before and a click inside it."""
    filled = mask.copy()
    for start in prompted:
        for step in (-1, 1):
            number, last = start + step, mask[start]
            while 0 <= number < len(images) and number not in prompted and last.any():
                row, column, _ = next_click(np.zeros_like(last), last) or (0.0, 0.0, True)
                predictor.set_image(images[number])
                last = predictor.predict(clicks=[Click(row, column, True)], previous_mask=last).mask
                filled[number] |= last
                number += step
    return filled


SLICE_CHOICES: dict[SliceChoice, Callable[[UserInVolume], int]] = {
    "worst": worst,
    "proposed": proposed,
    "spread": spread,
}
