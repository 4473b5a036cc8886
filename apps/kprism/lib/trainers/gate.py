# SPDX-License-Identifier: Apache-2.0
"""The gate before publication: new weights serve only if they are not worse on the frozen validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kprism_model.training.validation import Score, mean_dice

ALLOWED_DROP = 0.02
"""Dice that a structure may lose in a mode; the mean over all may lose none."""

NO_USE = 0.2
"""Dice up to which a mode is of no use for a structure: what it loses there is chance, and does not count as a loss."""

Kind = tuple[str, str]
"""A mode and a structure."""


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may serve, sentences that say why or by how much it falls short, and the mean Dice.

    `before` and `after` are over all modes and structures; `margin` is by how much the candidate clears the gate (below
    0: falls short), in Dice.
    """

    passed: bool
    reasons: tuple[str, ...]
    before: float
    after: float
    margin: float

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def judge(before: Sequence[Score], after: Sequence[Score], *, allowed_drop: float = ALLOWED_DROP) -> Verdict:
    """Compare scores of the serving and of the candidate weights on the same cases and modes.

    The mean over modes and structures must not fall, and no structure may lose more than `allowed_drop` in a mode; for
    that, any Dice below `NO_USE` counts as this much. ValueError if there are no scores, or not of the same cases,
    structures and modes.
    """
    kinds = [sorted((score.mode, score.structure, score.case) for score in scores) for scores in (before, after)]
    if not kinds[0] or kinds[0] != kinds[1]:
        raise ValueError(
            f"the gate compares scores of the same cases in the same modes, got {len(before)} and {len(after)} scores"
        )
    old, new = mean_dice(before), mean_dice(after)
    mean_before, mean_after = float(np.mean(list(old.values()))), float(np.mean(list(new.values())))
    gain = mean_after - mean_before
    losses = {kind: max(old[kind], NO_USE) - max(new[kind], NO_USE) for kind in old}
    faults = [_fell(kind, old, new, allowed_drop) for kind, loss in losses.items() if loss > allowed_drop]
    margins = [gain, *(allowed_drop - loss for loss in losses.values())]
    if gain < 0:
        faults.insert(0, f"mean Dice falls by {-100 * gain:.2f} points, from {mean_before:.4f} to {mean_after:.4f}")
    told = faults or [f"mean Dice rises by {100 * gain:.2f} points, from {mean_before:.4f} to {mean_after:.4f}"]
    return Verdict(not faults, tuple(told), mean_before, mean_after, min(margins))


def _fell(kind: Kind, old: Mapping[Kind, float], new: Mapping[Kind, float], allowed: float) -> str:
    mode, structure = kind
    return (
        f"{mode} Dice of {structure} falls by {100 * (old[kind] - new[kind]):.1f} points, from {old[kind]:.4f} to "
        f"{new[kind]:.4f}; at most {100 * allowed:g} are allowed"
    )
