# SPDX-License-Identifier: Apache-2.0
"""Prompts on one slice, replayed as the network was trained: each click corrects the mask of the clicks before it.

The result depends on the prompts and their initial mask alone. Each step is cached under a key of everything before it:
one more click costs one more pass, and undoing it costs none. Corrections are predicted in a window around the
structure, see `kprism_model.windowed`.

Prompts overrule the network: a clicked pixel is inside or outside as the last click on it says, a scribbled pixel as it
was drawn. Where a pixel has both, the click counts, because it is the finer tool. Pieces that negative scribbles cut
off are removed, see `cleanup.apply_scribbles`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kprism_model.predictor import THRESHOLD
from kprism_model.queries import Click
from kprism_model.volumes.cleanup import apply_scribbles
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompts import SlicePrompts
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery

MAXIMUM_REPLAYED_CLICKS = 8
"""So many clicks are replayed one by one; the others are given together in one more pass."""


def refine(
    features: SliceFeatures, prompts: SlicePrompts, class_name: str | None, initial_mask: Patch | None, initial_key: str
) -> Patch:
    """The mask that `prompts` make of `initial_mask` (None: empty); `initial_key` identifies that mask."""
    patch = initial_mask
    steps = _steps(prompts)
    for count in steps:
        clicks, before = prompts.clicks[:count], patch
        key = prompts.first(count).digest(class_name or "", initial_key)

        def step(clicks: Sequence[Click] = clicks, before: Patch | None = before) -> Patch:
            query = SliceQuery(prompts.number, class_name, clicks=tuple(clicks), scribbles=prompts.scribbles)
            return features.correct(query, before)

        patch = features.cached("refined", key, step)
    if patch is None:
        raise ValueError(f"slice {prompts.number} holds no prompt")
    return enforce_prompts(patch, prompts.clicks, prompts.scribbles, initial_mask)


def enforce_prompts(
    patch: Patch,
    clicks: Sequence[Click],
    scribbles: NDArray[np.int8] | None = None,
    initial_mask: Patch | None = None,
) -> Patch:
    """The patch with every clicked or scribbled pixel as the user marked it; `scribbles` (row, column) as in `Query`.

    `initial_mask` is the mask before all prompts; pieces that hold a part of it are never cut off.
    """
    if not clicks and scribbles is None:
        return patch
    if scribbles is None:
        return patch.with_pixels({(int(click.row), int(click.column)): float(click.positive) for click in clicks})
    probability = patch.probability()
    wanted = scribbles.copy()
    for click in clicks:
        if click.positive:
            wanted[int(click.row), int(click.column)] = 1
    kept = apply_scribbles(probability >= THRESHOLD, wanted, None if initial_mask is None else initial_mask.mask())
    probability[(probability >= THRESHOLD) & ~kept] = 0.0
    probability[scribbles > 0], probability[scribbles < 0] = 1.0, 0.0
    for click in clicks:
        probability[int(click.row), int(click.column)] = float(click.positive)
    return Patch.of(probability)


def _steps(prompts: SlicePrompts) -> list[int]:
    """How many clicks each pass gets; scribbles are part of every pass, and the first pass has no clicks then."""
    count = len(prompts.clicks)
    scribbles_alone = [0] if prompts.scribbles is not None else []
    return [
        *scribbles_alone,
        *range(1, min(count, MAXIMUM_REPLAYED_CLICKS) + 1),
        *([count] if count > MAXIMUM_REPLAYED_CLICKS else []),
    ]
