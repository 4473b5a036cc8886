# SPDX-License-Identifier: Apache-2.0
"""The gate before publication: new weights serve only if they are not worse on the fixed validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kprism_model.training.validation import Score, mean_dice

MAX_DICE_DROP = 0.02
"""Largest Dice that a structure may lose in a mode; the mean over all must not fall."""

MIN_USEFUL_DICE = 0.2
"""Below this Dice a mode is useless for a structure, and a change there is chance: it does not count as a loss."""

Kind = tuple[str, str]
"""A mode and a structure."""


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may serve, the reasons, and the mean Dice over all modes and structures before and after.

    `margin` is the Dice by which the candidate passes the gate; it is negative if it fails.
    """

    passed: bool
    reasons: tuple[str, ...]
    before: float
    after: float
    margin: float

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def judge(before: Sequence[Score], after: Sequence[Score], *, max_drop: float = MAX_DICE_DROP) -> Verdict:
    """Compare scores of the serving and of the candidate weights on the same cases and modes.

    The mean over modes and structures must not fall, and no structure may lose more than `max_drop` in a mode, where
    any Dice below `MIN_USEFUL_DICE` counts as `MIN_USEFUL_DICE`. ValueError if there are no scores, or the two lists
    are not of the same cases, structures and modes.
    """
    kinds = [sorted((score.mode, score.structure, score.case) for score in scores) for scores in (before, after)]
    if not kinds[0] or kinds[0] != kinds[1]:
        raise ValueError(
            f"the gate compares scores of the same cases in the same modes, got {len(before)} and {len(after)} scores"
        )
    old, new = mean_dice(before), mean_dice(after)
    mean_before, mean_after = float(np.mean(list(old.values()))), float(np.mean(list(new.values())))
    gain = mean_after - mean_before
    losses = {kind: max(old[kind], MIN_USEFUL_DICE) - max(new[kind], MIN_USEFUL_DICE) for kind in old}
    faults = [_fall(kind, old, new, max_drop) for kind, loss in losses.items() if loss > max_drop]
    margins = [gain, *(max_drop - loss for loss in losses.values())]
    if gain < 0:
        faults.insert(0, f"mean Dice falls by {-100 * gain:.2f} points, from {mean_before:.4f} to {mean_after:.4f}")
    reasons = faults or [f"mean Dice rises by {100 * gain:.2f} points, from {mean_before:.4f} to {mean_after:.4f}"]
    return Verdict(not faults, tuple(reasons), mean_before, mean_after, min(margins))


def _fall(kind: Kind, old: Mapping[Kind, float], new: Mapping[Kind, float], allowed: float) -> str:
    mode, structure = kind
    return (
        f"{mode} Dice of {structure} falls by {100 * (old[kind] - new[kind]):.1f} points, from {old[kind]:.4f} to "
        f"{new[kind]:.4f}; at most {100 * allowed:g} are allowed"
    )
