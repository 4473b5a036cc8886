# SPDX-License-Identifier: Apache-2.0
"""From tuned weights to what may be published: mixtures with the old ones, what validation says, what is told of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import Finetuner, mixed
from kprism_model.training.validation import Score, ValidationSettings, mean_dice, validate
from lib.gate import Verdict, judge
from lib.trainers.material import Material
from lib.versions import Served

logger = logging.getLogger(__name__)

SHARES = (1.0, 0.7, 0.4)
"""Shares of the new weights in the candidates that validation chooses from."""


@dataclass(frozen=True)
class Candidate:
    """Tuned weights mixed with the published ones, and what the gate says of them."""

    model: KPrism
    share: float
    scores: list[Score]
    verdict: Verdict


def best_candidate(
    tuner: Finetuner,
    served: Served,
    material: Material,
    before: Sequence[Score],
    shares: Sequence[float],
    *,
    device: str,
    settings: ValidationSettings,
) -> Candidate:
    """Of the mixtures with these shares of the new weights the one that passes the gate with the highest mean Dice.

    Where none passes, the one with the highest mean; `before` are the scores of the serving weights.
    """
    tuned = tuner.averaged()
    found = []
    for share in shares:
        model = mixed(served.checkpoint.model, tuned, share)
        predictor = Predictor(model, tuner.registry, device=device)
        scores = validate(predictor, material.validation, material.examples, settings=settings)
        found.append(Candidate(model, share, scores, judge(before, scores)))
        logger.info("With %.0f %% of the new weights: %s", 100 * share, found[-1].verdict)
    return max(found, key=lambda one: (one.verdict.passed, one.verdict.after, one.verdict.margin))


def facts_of(
    served: Served, material: Material, tuner: Finetuner, before: Sequence[Score], chosen: Candidate
) -> dict[str, Any]:
    """What is told of a version: where it comes from, what it was trained on, what it can do."""
    return {
        "trained_on": [submission.image_id for submission in material.used],
        "labels": [submission.key for submission in material.used],
        "skipped": material.skipped,
        "not_judged": material.not_judged(served.checkpoint.registry),
        "parent": served.number,
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
