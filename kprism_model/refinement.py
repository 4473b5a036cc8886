# SPDX-License-Identifier: Apache-2.0
"""Prompts on one slice, replayed as the network was trained: each click corrects the mask of those before it.

The result depends on the prompts and the mask that they start from alone. Each step is kept under a key of all that led
to it, so that one more click is one more pass, and taking it back is none. What was clicked is so: a clicked pixel is
inside or outside as the last click on it says, whatever the network finds.
"""

from __future__ import annotations

from collections.abc import Sequence

from kprism_model.patches import Patch
from kprism_model.queries import Click
from kprism_model.slice_features import Question, SliceFeatures
from kprism_model.volume_prompts import SlicePrompts

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
            return Patch.of(features.answer([question])[0].probability)

        patch = features.cached("refined", key, step)
    if patch is None:
        raise ValueError(f"slice {prompts.number} holds no prompt")
    return overrule(patch, prompts.clicks)


def overrule(patch: Patch, clicks: Sequence[Click]) -> Patch:
    """The same with each clicked pixel as it was clicked."""
    if not clicks:
        return patch
    probability = patch.probability()
    for click in clicks:
        probability[int(click.row), int(click.column)] = float(click.positive)
    return Patch.of(probability)


def _steps(prompts: SlicePrompts) -> list[int]:
    """How many clicks are given in each pass; scribbles are given in every one, and first without clicks."""
    count = len(prompts.clicks)
    alone = [0] if prompts.scribbles is not None else []
    return [*alone, *range(1, min(count, REPLAYED) + 1), *([count] if count > REPLAYED else [])]
