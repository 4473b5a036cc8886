# SPDX-License-Identifier: Apache-2.0
"""Candidates for publication: interpolations of the tuned and the anchor's weights, their validation, the metadata."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import Finetuner
from kprism_model.training.validation import Score, ValidationSettings, mean_dice, validate
from kprism_model.training.weights import interpolate_weights
from lib.learning.versions import Served
from lib.trainers.finetune_dataset import FinetuneDataset
from lib.trainers.gate import Verdict, judge

logger = logging.getLogger(__name__)

NEW_WEIGHT_SHARES = (1.0, 0.7, 0.4)
"""Shares of the new weights in the candidates that validation chooses from (WiSE-FT, arXiv 2109.01903)."""

DICE_TOLERANCE = 0.01
"""A candidate with fewer new weights is preferred if its Dice is at most this much below the best one."""


@dataclass(frozen=True)
class Candidate:
    """Weights that are the share `share` of the tuned and the rest of the anchor's, their scores and the verdict."""

    model: KPrism
    registry: ClassRegistry
    share: float
    scores: list[Score]
    verdict: Verdict


def best_candidate(
    tuner: Finetuner,
    dataset: FinetuneDataset,
    before: Sequence[Score],
    shares: Sequence[float],
    *,
    device: str,
    settings: ValidationSettings,
) -> Candidate:
    """The `preferred` one of the candidates with these shares of the new weights; it may still fail the gate.

    `before` are the scores of the serving weights.
    """
    tuned = tuner.averaged()
    candidates = []
    for share in shares:
        model = interpolate_weights(tuner.anchor, tuned, share)
        predictor = Predictor(model, tuner.registry, device=device)
        scores = validate(predictor, dataset.validation, dataset.reference_cases, settings=settings)
        candidates.append(Candidate(model, tuner.registry, share, scores, judge(before, scores)))
        logger.info("With %.0f %% of the new weights: %s", 100 * share, candidates[-1].verdict)
    return preferred(candidates)


def preferred(candidates: Sequence[Candidate]) -> Candidate:
    """Of those that pass the gate and are as good as the best (`DICE_TOLERANCE`), the one with the fewest new weights.

    It has kept most of what the cases here do not test. If none passes, the one with the highest mean.
    """
    passed = [one for one in candidates if one.verdict.passed]
    if not passed:
        return max(candidates, key=lambda one: (one.verdict.after, one.verdict.margin))
    best = max(one.verdict.after for one in passed)
    return min((one for one in passed if one.verdict.after >= best - DICE_TOLERANCE), key=lambda one: one.share)


def version_metadata(
    served: Served,
    start: Checkpoint,
    dataset: FinetuneDataset,
    tuner: Finetuner,
    before: Sequence[Score],
    chosen: Candidate,
) -> dict[str, Any]:
    """The metadata of a version: its parent, what it was trained on, its metrics."""
    return {
        "trained_on": [submission.image_id for submission in dataset.used],
        "labels": [submission.key for submission in dataset.used],
        "skipped": dataset.skipped,
        "not_judged": dataset.not_judged(served.checkpoint.registry),
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
    """Mean Dice by mode and structure, with keys like "semantic liver"."""
    return {f"{mode} {structure}": round(value, 4) for (mode, structure), value in sorted(mean_dice(scores).items())}
