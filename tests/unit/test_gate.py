# SPDX-License-Identifier: Apache-2.0
"""The gate: what it lets through, what it stops and by how much; and the scores that it compares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase
from kprism_model.metrics import dice
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import THRESHOLD, Predictor
from kprism_model.training.validation import Score, ValidationSettings, chosen_slices, mean_dice, validate
from lib.trainers.candidates import Candidate, preferred
from lib.trainers.gate import Verdict, judge


def scores(**values: float) -> list[Score]:
    """Of two cases each: `semantic_liver=0.8` and so on."""
    found = []
    for key, value in values.items():
        mode, structure = key.rsplit("_", 1)
        found += [Score(mode, structure, case, value, 0, np.zeros((2, 2), bool)) for case in ("a", "b")]
    return found


def test_a_better_candidate_passes_and_says_by_how_much() -> None:
    verdict = judge(scores(semantic_liver=0.7, in_context_liver=0.6), scores(semantic_liver=0.75, in_context_liver=0.6))
    assert verdict.passed
    assert str(verdict) == "mean Dice rises by 2.50 points, from 0.6500 to 0.6750"
    assert verdict.margin == pytest.approx(0.02)


def test_an_equal_candidate_passes() -> None:
    assert judge(scores(semantic_liver=0.7), scores(semantic_liver=0.7)).passed


def test_a_falling_mean_is_stopped() -> None:
    verdict = judge(scores(semantic_liver=0.7, semantic_spleen=0.6), scores(semantic_liver=0.69, semantic_spleen=0.6))
    assert not verdict.passed
    assert str(verdict) == "mean Dice falls by 0.50 points, from 0.6500 to 0.6450"
    assert verdict.margin == pytest.approx(-0.005)


def test_a_structure_that_loses_more_than_two_points_is_stopped_although_the_mean_rises() -> None:
    before = scores(semantic_liver=0.5, interactive_spleen=0.9)
    verdict = judge(before, scores(semantic_liver=0.9, interactive_spleen=0.875))
    assert not verdict.passed
    assert str(verdict) == (
        "interactive Dice of spleen falls by 2.5 points, from 0.9000 to 0.8750; at most 2 are allowed"
    )
    assert judge(before, scores(semantic_liver=0.9, interactive_spleen=0.885)).passed


def test_what_a_useless_mode_loses_is_no_loss() -> None:
    verdict = judge(
        scores(semantic_liver=0.5, in_context_spleen=0.1), scores(semantic_liver=0.9, in_context_spleen=0.0)
    )
    assert verdict.passed and verdict.margin == pytest.approx(0.02)
    assert judge(
        scores(semantic_liver=0.5, in_context_spleen=0.21), scores(semantic_liver=0.9, in_context_spleen=0.1)
    ).passed  # 0.01 down to no use
    assert not judge(
        scores(semantic_liver=0.5, in_context_spleen=0.23), scores(semantic_liver=0.9, in_context_spleen=0.1)
    ).passed


def test_both_faults_are_told() -> None:
    verdict = judge(scores(semantic_liver=0.7, semantic_spleen=0.6), scores(semantic_liver=0.7, semantic_spleen=0.5))
    assert [reason.split(" falls")[0] for reason in verdict.reasons] == ["mean Dice", "semantic Dice of spleen"]
    assert verdict.margin == pytest.approx(-0.08)


@pytest.mark.parametrize(
    ("candidates", "share"),
    [
        ([(1.0, True, 0.850), (0.7, True, 0.842), (0.4, True, 0.835)], 0.7),  # as good, with fewer new weights
        ([(1.0, True, 0.850), (0.7, True, 0.830), (0.4, True, 0.820)], 1.0),
        ([(1.0, False, 0.850), (0.7, True, 0.800), (0.4, False, 0.849)], 0.7),  # the others fail the gate
        ([(1.0, False, 0.700), (0.7, False, 0.720), (0.4, False, 0.710)], 0.7),
    ],
)
def test_what_is_as_good_with_fewer_new_weights_is_preferred(
    predictor: Predictor, candidates: list[tuple[float, bool, float]], share: float
) -> None:
    found = [
        Candidate(predictor.model, predictor.registry, part, [], Verdict(passed, ("told",), 0.7, after, 0.0))
        for part, passed, after in candidates
    ]
    assert preferred(found).share == share


def test_scores_of_other_cases_are_not_compared() -> None:
    with pytest.raises(ValueError, match="got 2 and 4 scores"):
        judge(scores(semantic_liver=0.7), scores(semantic_liver=0.7, semantic_spleen=0.7))
    with pytest.raises(ValueError, match="got 0 and 0 scores"):
        judge([], [])


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(num_classes=1)), ClassRegistry(["disc"]))


def volume(name: str, patient: str, structures: dict[str, int]) -> AnnotatedCase:
    """Eight slices, of which the middle four show a disc (1) and a square (2)."""
    rows, columns = np.mgrid[:64, :64]
    labels = np.zeros((8, 64, 64), np.uint8)
    labels[2:6] = np.where((rows - 20) ** 2 + (columns - 20) ** 2 < 100, 1, 0)
    labels[2:6, 40:56, 40:56] = 2
    images = np.random.default_rng(0).random(labels.shape, np.float32) * 0.2 + labels * np.float32(0.3)
    return AnnotatedCase(name, patient, images, labels, structures)


def test_every_mode_and_annotated_structure_is_scored(predictor: Predictor) -> None:
    cases = [volume("a", "p1", {"disc": 1}), volume("b", "p2", {"disc": 1, "square": 2})]
    found = validate(predictor, cases, [volume("c", "p3", {"disc": 1})])
    kinds = sorted((score.case, score.structure, score.mode) for score in found)
    assert kinds == [
        ("a", "disc", "in_context"),
        ("a", "disc", "interactive"),
        ("a", "disc", "semantic"),
        ("b", "disc", "in_context"),
        ("b", "disc", "interactive"),
        ("b", "disc", "semantic"),
        ("b", "square", "interactive"),  # no training case shows a square
        ("b", "square", "semantic"),
    ]
    means = mean_dice(found)
    assert means["semantic", "square"] == 0.0  # the weights do not know it
    assert all(0 <= value <= 1 for value in means.values())
    again = validate(predictor, cases, [volume("c", "p3", {"disc": 1})])
    assert mean_dice(again) == means


def test_semantic_scores_are_those_of_the_predictor(predictor: Predictor) -> None:
    case = volume("a", "p1", {"disc": 1})
    [score] = validate(predictor, [case], modes=["semantic"])
    masks = np.zeros_like(case.labels, dtype=bool)
    chosen = chosen_slices(case, "disc", ValidationSettings())
    for number in chosen:
        answer = predictor.predict(class_name="disc", embedding=predictor.embed([case.images[number]])[0])
        masks[number] = answer.mask & (answer.presence >= THRESHOLD)
    assert score.dice == pytest.approx(dice(masks[chosen], case.mask("disc")[chosen]), abs=1e-3)
    assert np.array_equal(score.prediction, masks[score.slice])


def test_a_patient_is_no_reference_for_itself(predictor: Predictor) -> None:
    case = volume("a", "p1", {"disc": 1})
    assert validate(predictor, [case], [volume("c", "p1", {"disc": 1})], modes=["in_context"]) == []


def test_slices_with_and_without_the_structure_are_looked_at() -> None:
    case = volume("a", "p1", {"disc": 1})
    assert chosen_slices(case, "disc", ValidationSettings(shown=2, absent=2)) == [1, 3, 5, 7]
    assert chosen_slices(case, "disc", ValidationSettings(shown=9, absent=0)) == [2, 3, 4, 5]
