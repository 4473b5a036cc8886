# SPDX-License-Identifier: Apache-2.0
"""Prompts on one slice, replayed as the network was trained: each click corrects the mask of those before it.

The result depends on the prompts and the mask that they start from alone. Each step is kept under a key of all that led
to it, so that one more click is one more pass, and taking it back is none. A correction is answered in a window around
the structure, see `kprism_model.windowed`. What was clicked is so: a clicked pixel is
inside or outside as the last click on it says, and a drawn one as it was drawn, whatever the network finds; where both
are, the click, which is the finer tool, counts. What negative scribbles cut off goes, see `cleanup.as_scribbled`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kprism_model.predictor import THRESHOLD
from kprism_model.queries import Click
from kprism_model.volumes.cleanup import as_scribbled
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompts import SlicePrompts
from kprism_model.volumes.slice_features import Question, SliceFeatures

REPLAYED = 8
"""Clicks that are replayed one by one; those beyond are given together, in one pass more."""


def refine(
    features: SliceFeatures, prompts: SlicePrompts, class_name: str | None, start: Patch | None, start_key: str
) -> Patch:
    """The mask that `prompts` make of `start` (None: of nothing), which `start_key` identifies."""
    patch = start
    steps = _steps(prompts)
    for count in steps:
        clicks, before = prompts.clicks[:count], patch
        key = prompts.first(count).digest(class_name or "", start_key)

        def step(clicks: Sequence[Click] = clicks, before: Patch | None = before) -> Patch:
            previous = None if before is None else before.probability()
            question = Question(
                prompts.number,
                class_name,
                clicks=tuple(clicks),
                scribbles=prompts.scribbles,
                previous_mask=previous,
            )
            return Patch.of(features.correct(question).probability)

        patch = features.cached("refined", key, step)
    if patch is None:
        raise ValueError(f"slice {prompts.number} holds no prompt")
    return overrule(patch, prompts.clicks, prompts.scribbles, start)


def overrule(
    patch: Patch, clicks: Sequence[Click], scribbles: NDArray[np.int8] | None = None, start: Patch | None = None
) -> Patch:
    """The same with each clicked or drawn pixel as it was clicked or drawn; `scribbles` (row, column) as in `Query`.

    `start` is the mask before all prompts, of which scribbles cut nothing off.
    """
    if not clicks and scribbles is None:
        return patch
    probability = patch.probability()
    if scribbles is not None:
        meant = scribbles.copy()
        for click in clicks:
            if click.positive:
                meant[int(click.row), int(click.column)] = 1
        kept = as_scribbled(probability >= THRESHOLD, meant, None if start is None else start.mask())
        probability[(probability >= THRESHOLD) & ~kept] = 0.0
        probability[scribbles > 0], probability[scribbles < 0] = 1.0, 0.0
    for click in clicks:
        probability[int(click.row), int(click.column)] = float(click.positive)
    return Patch.of(probability)


def _steps(prompts: SlicePrompts) -> list[int]:
    """How many clicks are given in each pass; scribbles are given in every one, and first without clicks."""
    count = len(prompts.clicks)
    alone = [0] if prompts.scribbles is not None else []
    return [*alone, *range(1, min(count, REPLAYED) + 1), *([count] if count > REPLAYED else [])]
