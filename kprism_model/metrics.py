# SPDX-License-Identifier: Apache-2.0
"""Segmentation metrics: Dice, and the number of clicks to reach a Dice.

This `dice` serves the simulated user and validation, which call it thousands of times on small masks: MONAI's takes
11 to 23 times as long there, and seconds to import (`benchmarks/metrics_equality.py`). A report's Dice and surface
distances are MONAI's, in `kprism_model.evaluation.monai_metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


def dice(prediction: BoolArray, target: BoolArray, *, empty: float = 1.0) -> float:
    """Dice coefficient of two masks of one shape, in any number of dimensions; `empty` where both are empty."""
    prediction, target = _as_masks(prediction, target)
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return empty if total == 0 else 2 * np.count_nonzero(prediction & target) / total


def clicks_to_reach(scores: Sequence[float], threshold: float, limit: int = 20) -> int:
    """Number of clicks (NoC) after which the score first is at least `threshold`; scores[k] follows click k + 1.

    `limit` where it never is within `limit` clicks: failures count as `limit`, so give their share beside the mean.
    """
    for clicks, score in enumerate(scores[:limit], start=1):
        if score >= threshold:
            return clicks
    return limit


def _as_masks(prediction: BoolArray, target: BoolArray) -> tuple[BoolArray, BoolArray]:
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape, not {prediction.shape} and {target.shape}")
    return prediction, target
