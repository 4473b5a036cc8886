# SPDX-License-Identifier: Apache-2.0
"""The clicks of the published evaluation: its rule, and series of clicks that are made for many structures at a time.

All of it happens on the network's canvas, as there: clicks are chosen from the prediction and the truth on the canvas,
and the next prediction corrects the probabilities of the canvas. Only scores belong to the slice's own pixels.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import bounding_box, largest_component
from kprism_model.interaction.clicks import next_click
from kprism_model.predictor import Prediction
from kprism_model.queries import Click, Query

BoolArray = NDArray[np.bool_]

CLICK_LIMIT = 20
"""Clicks on a structure in a slice; a Dice that is never reached counts as this many."""

DICE_CLICKS = (1, 5)
"""The numbers of clicks after which Dice is reported."""

NOC_THRESHOLDS = (0.85, 0.90, 0.95)
"""The Dice values for which the number of clicks (NoC) is reported."""

ClickRule = Callable[[BoolArray, BoolArray, np.random.Generator], tuple[float, float, bool] | None]
"""The next click (row, column, positive) on a prediction (H, W), given the truth (H, W); None if there is none."""

Counts = tuple[int, int]
"""Pixels that a mask shares with the truth, and pixels of the mask."""


def published_click(
    prediction: BoolArray, target: BoolArray, rng: np.random.Generator
) -> tuple[float, float, bool] | None:
    """The next click on `prediction` (H, W), given the true mask `target` (H, W), by the published rule.

    It goes to the larger of the largest missed and the largest spurious component (pixels that share an edge are
    connected). It is positive if the missed one is larger, so not if they are equal. The inner part of the component is
    where the distance to its edge is more than a third of the greatest; the image's border is an edge. The click is on
    the rounded centre of mass of the inner part or, if that lies outside the component, on a pixel of the inner part
    that is drawn with `rng`. None if the masks are equal. (Distances are exact here; the published code approximates
    them by a 5 x 5 chamfer mask.)
    """
    missed, spurious = _largest(target & ~prediction), _largest(prediction & ~target)
    sizes = [0 if found is None else int(np.count_nonzero(found[0])) for found in (missed, spurious)]
    positive = sizes[0] > sizes[1]
    chosen = missed if positive else spurious
    if chosen is None:
        return None
    region, corner = chosen
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    inner = np.argwhere(depth > depth.max() / 3)
    row, column = np.rint(inner.mean(axis=0) + corner).astype(int) - corner  # half to even, in pixels of the canvas
    if not region[row, column]:
        row, column = inner[rng.integers(len(inner))]
    return float(row + corner[0]), float(column + corner[1]), positive


def _largest(mask: BoolArray) -> tuple[BoolArray, NDArray[np.int64]] | None:
    """The largest component as a crop, and the crop's (row, column); None for an empty mask."""
    box = bounding_box(mask)
    if box is None:
        return None
    return largest_component(mask[box]), np.array([side.start for side in box])


def _deepest_click(
    prediction: BoolArray, target: BoolArray, rng: np.random.Generator
) -> tuple[float, float, bool] | None:
    """The click of our own protocol, which draws nothing."""
    return next_click(prediction, target)


CLICK_RULES: dict[str, ClickRule] = {"published": published_click, "ours": _deepest_click}
"""The published rule, and that of our own protocol."""


@dataclass(eq=False)
class Refinement:
    """A series of clicks on one structure of a slice.

    `query` has the canvas as its image. `target` is the truth on the canvas. `probability` is the first mask on the
    canvas, None to start from nothing. `count` counts the pixels of a mask of the canvas at the slice's own size, and
    `true` is the number of pixels of the truth there. `counts` are those after 0, 1, ... clicks; None without a mask.
    """

    query: Query
    target: BoolArray
    probability: NDArray[np.float32] | None
    count: Callable[[NDArray[np.float32]], Counts]
    true: int
    rule: ClickRule
    rng: np.random.Generator
    counts: list[Counts | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Count the first mask."""
        self.counts.append(None if self.probability is None else self.count(self.probability))

    @property
    def finished(self) -> bool:
        """Whether more clicks can change none of the reported figures, or no more are allowed."""
        made = len(self.counts) - 1
        return made >= CLICK_LIMIT or (made >= max(DICE_CLICKS) and self._best() > max(NOC_THRESHOLDS))

    def click(self) -> bool:
        """Add the next click to the query; false if the masks on the canvas are equal."""
        mask = np.zeros_like(self.target) if self.probability is None else self.probability > 0.5
        click = self.rule(mask, self.target, self.rng)
        if click is not None:
            self.query = self.query.with_click(Click(*click), self.probability)
        return click is not None

    def accept(self, prediction: Prediction) -> None:
        """Record the prediction for the last click."""
        self.probability = prediction.probability
        self.counts.append(self.count(prediction.probability))

    def _best(self) -> float:
        return max(2 * counts[0] / (counts[1] + self.true) for counts in self.counts if counts is not None)


def refine(
    predict: Callable[[Sequence[Query]], Sequence[Prediction]], series: Sequence[Refinement], batch: int
) -> None:
    """Make the clicks of all `series`; `predict` gets `batch` queries at once.

    A series that ends is replaced by the next one, so that passes stay full. Canvases of one size follow each other,
    because only they can share a pass.
    """
    waiting = deque(sorted(series, key=lambda one: one.query.embedding.geometry.padded))
    active: list[Refinement] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="clicks") as pool:
        while waiting or active:
            while waiting and len(active) < batch:
                active.append(waiting.popleft())
            clicked = list(pool.map(Refinement.click, active))
            active = [one for one, made in zip(active, clicked, strict=True) if made]
            for one, prediction in zip(active, predict([one.query for one in active]), strict=True):
                one.accept(prediction)
            active = [one for one in active if not one.finished]
