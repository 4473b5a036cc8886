# SPDX-License-Identifier: Apache-2.0
"""Times of propagation in a volume of 256 x 256 x 100: a whole structure, and what one more click computes again.

Other work on the machine does not count in the processor's seconds, which is why ratios are taken of these.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.volume_samples import Sample, resampled
from benchmarks.volume_user import METHODS, UserInVolume
from kprism_model.predictor import Predictor

SHAPE = (100, 256, 256)
"""Slices, rows and columns."""
CLICKS = 3
"""On the middle slice, before the mask is propagated."""


def speed_of(predictor: Predictor, sample: Sample) -> dict[str, Any]:
    """Slices and seconds for the whole structure, for one click more, and for all clicks without earlier results."""
    enlarged = resampled(sample, SHAPE)
    user = UserInVolume(predictor, enlarged, METHODS["propagated"])
    for _ in range(CLICKS):
        user.click(enlarged.middle)
        user.predict(propagate=False)
    found = {"volume": list(SHAPE), "whole structure": timed(user)}
    shown = np.flatnonzero(enlarged.true.any(axis=(1, 2)))
    user.click(int(shown[3 * len(shown) // 4]))
    found["one click more"] = timed(user)
    afresh = UserInVolume(predictor, enlarged, METHODS["propagated"])
    afresh.clicks = user.clicks
    found["all clicks, nothing kept"] = timed(afresh)
    return found


def timed(user: UserInVolume) -> dict[str, float]:
    """Predict the mask for the user's clicks: slices that were propagated now, seconds, and those of the processor."""
    slices: list[int] = []
    start = time.process_time()
    user.predict(progress=slices.append)
    processor_seconds = time.process_time() - start
    return {
        "slices": sum(slices),
        "seconds": round(user.seconds, 2),
        "processor_seconds": round(processor_seconds, 2),
    }
