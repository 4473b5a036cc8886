# SPDX-License-Identifier: Apache-2.0
"""Where to look next: the slice of a propagated mask that is least certain, from the mask's probabilities alone.

If the probabilities are right, the sum of min(p, 1 - p) over the pixels of a slice is the number of pixels that are
expected to be wrong (least confidence, as in active learning). The score of a slice is that number, and a tenth of it
more for each slice of distance to the nearest prompted slice, because errors grow on the way.

Chosen on 120 masks of four validation volumes each of hippocampus_mr and acdc_mr. Spearman's correlation with the
wrong pixels of a slice is 0.62 to 0.76 and 0.32 to 0.43. The proposed slice has 0.62 to 0.84 and 0.73 to 0.74 of the
wrong pixels of the worst slice, where a random one has 0.36 and 0.51 to 0.60. Left out, because they were no better:
mean probability (correlation 0.36 to 0.49 and 0.18 to 0.26), the share of pixels between 0.3 and 0.7, the difference
from the neighbouring slices, a score for the slices just beyond the ends, and more weight of the distance. In clicks to
Dice 0.85 (docs/evaluation.md) a user who follows the proposal needs as many as one who clicks in the middle of the
largest gap between prompted slices (heart: 12.4 and 12.2), or more (hippocampus: 17.9 and 16.1).
"""

from __future__ import annotations

import numpy as np

from kprism_model.predictor import THRESHOLD
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prediction import StructureMask

DISTANCE_WEIGHT = 0.1
"""Added to the factor of a slice's score for each slice of distance to the nearest prompted slice."""
CERTAIN_SHARE = 0.05
"""A slice is certain if fewer pixels than this share of its mask, or less than one pixel, are expected to be wrong."""


def next_slice(mask: StructureMask) -> int | None:
    """The slice whose mask is least certain, the first of equals; None if all are certain.

    Slices with prompts, and slices that were not computed, are never proposed.
    """
    scores = uncertainty(mask)
    return max(scores, key=lambda number: scores[number], default=None)


def uncertainty(mask: StructureMask) -> dict[int, float]:
    """The score of each computed slice without prompts that is not certain, ascending by slice; see this module."""
    scores = {}
    for number in mask.changed:
        patch = mask.slices[number]
        expected = expected_wrong_pixels(patch)
        area = int((patch.values >= THRESHOLD).sum())
        if number not in mask.prompted and expected >= max(1.0, CERTAIN_SHARE * area):
            distance = min((abs(number - prompted) for prompted in mask.prompted), default=0)
            scores[number] = expected * (1 + DISTANCE_WEIGHT * distance)
    return scores


def expected_wrong_pixels(patch: Patch) -> float:
    """The sum of min(p, 1 - p) over the pixels of a slice."""
    values = patch.values.astype(np.float32)
    return float(np.minimum(values, 1 - values).sum(dtype=np.float64))
