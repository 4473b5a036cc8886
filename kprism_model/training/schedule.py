# SPDX-License-Identifier: Apache-2.0
"""How many interaction steps a training step simulates in each mode, and what they start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MODES = ("semantic", "in_context", "interactive")


@dataclass(frozen=True)
class StepSettings:
    """What a training step simulates.

    `weights` of the losses of semantic, in-context and interactive rows; a mode of weight 0 is left out. A semantic
    or in-context mask is corrected by one click with `correction_probability`. Interactive rows start with a click or,
    with `scribble_probability`, with scribbles. Up to `clicks_without_gradient` more clicks follow, so that the network
    meets late corrections at the price of a forward pass; then the loss is computed for `interaction_steps` masks.
    With `propagation_probability` interactive rows start instead from a mask propagated from the slice before; of the
    others, a share of `corrupted_mask_probability` starts from a wrong mask that has to be corrected. Masks after the
    first have the weight `later_weight`. `presence_weight` is that of the presence loss, which is computed for first
    masks and for structures that the images are known to lack; `kind_weight` that of the loss of the kind of image.
    """

    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    correction_probability: float = 0.35
    scribble_probability: float = 0.2
    propagation_probability: float = 0.15
    corrupted_mask_probability: float = 0.5
    clicks_without_gradient: int = 3
    interaction_steps: int = 2
    later_weight: float = 0.8
    presence_weight: float = 1.0
    kind_weight: float = 0.1


@dataclass(frozen=True)
class Schedule:
    """The interaction steps of one mode: `steps` in all, the first `without_gradient` of them without a loss.

    At most one of `scribble`, `propagated` and `corrupted` says what comes first; without them it is a click.
    """

    steps: int
    without_gradient: int = 0
    scribble: bool = False
    propagated: bool = False
    corrupted: bool = False


def draw_schedule(mode: str, rng: np.random.Generator, settings: StepSettings) -> Schedule:
    """A random schedule for "semantic", "in_context" or "interactive"."""
    if mode != "interactive":
        return Schedule(1 + int(rng.random() < settings.correction_probability))
    without_gradient = int(rng.integers(settings.clicks_without_gradient + 1))
    scribble = bool(rng.random() < settings.scribble_probability)
    if rng.random() < settings.propagation_probability:
        return Schedule(settings.interaction_steps, propagated=True)
    corrupted = bool(rng.random() < settings.corrupted_mask_probability)
    steps = without_gradient + settings.interaction_steps
    return Schedule(steps, without_gradient, scribble and not corrupted, corrupted=corrupted)
