# SPDX-License-Identifier: Apache-2.0
"""From tuned weights to what may be published: mixtures with the anchor's, what validation says, what is told of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kprism_model.checkpoint import Checkpoint
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import Finetuner
from kprism_model.training.validation import Score, ValidationSettings, mean_dice, validate
from kprism_model.training.weights import interpolate_weights
from lib.learning.versions import Served
from lib.trainers.finetune_dataset import FinetuneDataset
from lib.trainers.gate import Verdict, judge

logger = logging.getLogger(__name__)

SHARES = (1.0, 0.7, 0.4)
"""Shares of the new weights in the candidates that validation chooses from."""

AS_GOOD = 0.01
"""Dice by which a candidate may be worse than the best one and still be preferred for holding fewer new weights."""


@dataclass(frozen=True)
class Candidate:
    """Tuned weights mixed with the anchor's, and what the gate says of them."""

    model: KPrism
    share: float
    scores: list[Score]
    verdict: Verdict


def best_candidate(
    tuner: Finetuner,
    material: FinetuneDataset,
    before: Sequence[Score],
    shares: Sequence[float],
    *,
    device: str,
    settings: ValidationSettings,
) -> Candidate:
    """The mixture with one of these shares of the new weights that is `preferred`; it may still fail the gate.

    `before` are the scores of the serving weights.
    """
    tuned = tuner.averaged()
    found = []
    for share in shares:
        model = interpolate_weights(tuner.anchor, tuned, share)
        predictor = Predictor(model, tuner.registry, device=device)
        scores = validate(predictor, material.validation, material.examples, settings=settings)
        found.append(Candidate(model, share, scores, judge(before, scores)))
        logger.info("With %.0f %% of the new weights: %s", 100 * share, found[-1].verdict)
    return preferred(found)


def preferred(candidates: Sequence[Candidate]) -> Candidate:
    """Of those that pass the gate, the one with the fewest new weights that is as good as the best (`AS_GOOD`).

    It has kept most of what no case here tells of. Where none passes, the one with the highest mean.
    """
    passed = [one for one in candidates if one.verdict.passed]
    if not passed:
        return max(candidates, key=lambda one: (one.verdict.after, one.verdict.margin))
    best = max(one.verdict.after for one in passed)
    return min((one for one in passed if one.verdict.after >= best - AS_GOOD), key=lambda one: one.share)


def facts_of(
    served: Served,
    start: Checkpoint,
    material: FinetuneDataset,
    tuner: Finetuner,
    before: Sequence[Score],
    chosen: Candidate,
) -> dict[str, Any]:
    """What is told of a version: where it comes from, what it was trained on, what it can do."""
    return {
        "trained_on": [submission.image_id for submission in material.used],
        "labels": [submission.key for submission in material.used],
        "skipped": material.skipped,
        "not_judged": material.not_judged(served.checkpoint.registry),
        "parent": served.number,
        "start": start.weights_version,
        "steps": tuner.step,
        "minutes": round(tuner.seconds / 60, 2),
        "processes": tuner.workers.count,
        "share_of_new_weights": chosen.share,
        "dice": round(chosen.verdict.after, 4),
        "metrics_before": rounded(before),
        "metrics": rounded(chosen.scores),
        "gate": str(chosen.verdict),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def overall(scores: Sequence[Score]) -> float:
    """Mean Dice over modes and structures."""
    return float(np.mean(list(mean_dice(scores).values())))


def rounded(scores: Sequence[Score]) -> dict[str, float]:
    """Mean Dice by mode and structure, in one text: "semantic liver"."""
    return {f"{mode} {structure}": round(value, 4) for (mode, structure), value in sorted(mean_dice(scores).items())}
