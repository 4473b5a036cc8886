# SPDX-License-Identifier: Apache-2.0
"""The gate: who answers a structure in a mode, from when on it can tell; and the scores that it compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import THRESHOLD, Click, Predictor, Query, predict_batch
from kprism_model.training.validation import ValidationSettings, chosen_slices, mean_dice, validate
from lib.trainers.gate import Evidence, chance_of_equal, judge, summary


def dice_of(*values: float) -> dict[str, float]:
    """Dice of patients p0, p1, ..."""
    return {f"p{number}": value for number, value in enumerate(values)}


def evidence(base: Sequence[float], new: Sequence[float], **changes: Any) -> Evidence:
    """About a structure that the shipped weights do not know, by name, unless `changes` say otherwise."""
    fields: dict[str, Any] = {"mode": "semantic", "structure": "tumour", "base_name": "references", **changes}
    if isinstance(fields.get("serving"), tuple):
        fields["serving"] = dice_of(*fields["serving"])
    return Evidence(base=dice_of(*base), new=dice_of(*new), **fields)


BETTER = (0.8, 0.7, 0.9, 0.6, 0.8, 0.7)
BASE = (0.6, 0.6, 0.7, 0.5, 0.7, 0.6)


def test_the_new_version_answers_if_it_is_better_for_enough_patients() -> None:
    for name, mode in (("references", "semantic"), ("shipped weights", "semantic"), ("shipped weights", "interactive")):
        decision = judge(evidence(BASE, BETTER, base_name=name, mode=mode))
        assert decision.uses_new and not decision.provisional and decision.outcome == "new"
        assert decision.patients == 6 and decision.best == pytest.approx(0.75) and decision.before < 0.62


def test_with_few_patients_it_answers_only_what_nothing_else_answers_by_name_and_provisionally() -> None:
    decision = judge(evidence(BASE[:3], BETTER[:3]))
    assert decision.uses_new and decision.provisional
    for changes in ({"base_name": "shipped weights"}, {"mode": "in_context"}, {"mode": "interactive"}):
        decision = judge(evidence(BASE[:5], BETTER[:5], **changes))
        assert not decision.answered_by_site and decision.outcome == "not enough cases to tell"
    worse_once = judge(evidence((0.6, 0.6, 0.95), BETTER[:3]))
    assert not worse_once.answered_by_site and worse_once.outcome == "not enough cases to tell"
    assert not judge(evidence(BASE[:1], BETTER[:1])).answered_by_site  # one patient: no other to learn from


MIXED = (0.9, 0.5, 0.9, 0.4, 0.8, 0.7)
"""Better than `BASE` on average, but not for certain."""


def test_chance_does_not_decide() -> None:
    mixed = judge(evidence(BASE, MIXED, base_name="shipped weights"))
    assert not mixed.answered_by_site and mixed.outcome == "not enough cases to tell"
    hardly = judge(evidence(BASE, (0.65, 0.5, 0.8, 0.5, 0.65, 0.6)))
    assert not hardly.answered_by_site and hardly.outcome == "not enough cases to tell"
    assert judge(evidence(BASE, BASE)).outcome == "not better"
    assert judge(evidence(BETTER, BASE)).outcome == "worse"


def test_what_nothing_else_answers_by_name_is_answered_provisionally_if_it_is_probably_better() -> None:
    probably = judge(evidence(BASE, MIXED))
    assert probably.uses_new and probably.provisional and probably.outcome == "new"
    for changes in ({"base_name": "shipped weights"}, {"mode": "in_context"}, {"mode": "interactive"}):
        assert not judge(evidence(BASE, MIXED, **changes)).answered_by_site


def test_the_test_is_about_the_mean() -> None:
    rescued = np.array([0.9, 0.8, 0.7, 0.9, -0.01, -0.02, -0.03, -0.04, -0.05, -0.06])
    assert chance_of_equal(rescued) < 0.07 < stats.wilcoxon(rescued, alternative="greater").pvalue
    assert chance_of_equal(np.full(6, 0.1)) == pytest.approx(1 / 64)
    assert chance_of_equal(np.zeros(6)) == 1.0 and chance_of_equal(np.full(6, -0.1)) == 1.0


def test_of_two_site_versions_the_better_one_answers() -> None:
    serving = {"serving_number": 3, "base_name": "shipped weights"}
    newer = judge(evidence(BASE, BETTER, serving=BASE, **serving))
    assert newer.uses_new and newer.number is None and newer.outcome == "new"
    older = judge(evidence(BASE, BASE, serving=BETTER, **serving))
    assert older.answered_by_site and older.number == 3 and older.outcome == "kept" and older.best > 0.7


def test_a_confirmed_version_stays_until_it_is_significantly_worse() -> None:
    confirmed = {"serving_number": 3, "base_name": "shipped weights"}
    doubtful = judge(evidence(BASE, BASE, serving=BASE, **confirmed))
    assert doubtful.answered_by_site and not doubtful.provisional
    few = judge(evidence(BASE[:2], BASE[:2], serving=BASE[:2], **confirmed))
    assert few.answered_by_site and not few.provisional
    worse = judge(evidence(BETTER, BASE, serving=BASE, **confirmed))
    assert not worse.answered_by_site and worse.outcome == "worse"


def test_a_provisional_version_is_confirmed_or_withdrawn_by_more_patients() -> None:
    provisional = {"serving_number": 2, "provisional": True}
    assert not judge(evidence(BASE, BETTER, serving=BASE, **provisional)).provisional
    doubtful = judge(evidence(BASE, MIXED, serving=BASE, **provisional))
    assert doubtful.answered_by_site and doubtful.provisional
    assert not judge(evidence(BASE, BASE, serving=BASE, **provisional)).answered_by_site
    few = judge(evidence(BASE[:4], BETTER[:4], serving=BASE[:4], **provisional))
    assert few.uses_new and few.provisional


def test_with_few_patients_too_a_provisional_version_stays_as_long_as_it_is_better_on_average() -> None:
    provisional = {"serving_number": 2, "provisional": True}
    lost_once = judge(
        evidence((0.5, 0.5, 0.5, 0.5, 0.5), (0.8, 0.8, 0.8, 0.8, 0.49), serving=(0.6,) * 5, **provisional)
    )
    assert lost_once.uses_new and lost_once.provisional
    worse = judge(evidence((0.5,) * 5, (0.4,) * 5, serving=(0.4,) * 5, **provisional))
    assert not worse.answered_by_site


def test_a_serving_version_with_few_scores_does_not_hide_that_the_new_one_is_worse() -> None:
    """Labels that were corrected are measured anew, but not with a version that has seen their patients."""
    confirmed = {"serving_number": 3, "base_name": "shipped weights", "serving": (0.4, 0.4)}
    decision = judge(evidence((0.9,) * 20, (0.5,) * 20, **confirmed))
    assert not decision.answered_by_site and decision.outcome == "worse" and decision.patients == 20
    better = judge(evidence((0.5,) * 20, (0.9,) * 20, **confirmed))
    assert better.uses_new and better.patients == 20 and better.before == pytest.approx(0.4)


def test_only_patients_that_all_were_measured_on_are_compared() -> None:
    base, new = dice_of(*BASE), {**dice_of(*BETTER), "later": 0.0}
    decision = judge(Evidence("semantic", "tumour", "references", base, new))
    assert decision.patients == 6 and decision.uses_new
    assert not judge(Evidence("semantic", "tumour", "references", {}, new)).answered_by_site


def test_the_status_says_what_was_decided_in_a_sentence() -> None:
    decisions = [
        judge(evidence(BASE, BETTER)),
        judge(evidence(BASE, BETTER, serving=BASE, serving_number=3, structure="cyst")),
        judge(evidence(BASE[:2], BETTER[:2], structure="node")),
        judge(evidence(BASE, BASE, mode="interactive", base_name="shipped weights")),
        judge(evidence(BASE[:3], BETTER[:3], mode="interactive", base_name="shipped weights", structure="node")),
        judge(evidence(BASE[:1], BETTER[:1], structure="stone")),
    ]
    assert summary(decisions) == (
        "tumour (semantic) 0.750 (references: 0.617); cyst (semantic) 0.750 (version 3: 0.617); "
        "node (semantic) 0.750 (references: 0.600, provisionally); not better: tumour (interactive); "
        "not enough cases to tell (1 patient): stone (semantic); "
        "not enough cases to tell (3 patients): node (interactive)"
    )


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


def test_clicks_are_scored_after_each_of_them_as_they_are_served(predictor: Predictor) -> None:
    case = volume("a", "p1", {"disc": 1})
    settings = ValidationSettings(shown=1, absent=0, clicked=1, clicks=3)
    [score] = validate(predictor, [case], modes=["interactive"], settings=settings)
    [number] = chosen_slices(case, "disc", settings)
    truth = case.mask("disc")[number]
    mask, query, probability, found = np.zeros_like(truth), Query(predictor.embed([case.images[number]])[0]), None, []
    for _ in range(3):
        click = next_click(mask, truth)
        assert click is not None
        query = query.with_click(Click(*click), probability)
        [answer] = predict_batch(predictor, [query])
        mask, probability = answer.mask, answer.probability
        found.append(dice(mask, truth))
    assert score.dice == pytest.approx(np.mean(found), abs=1e-3)
    assert np.array_equal(score.prediction, mask)


def test_a_patient_is_no_reference_for_itself(predictor: Predictor) -> None:
    case = volume("a", "p1", {"disc": 1})
    assert validate(predictor, [case], [volume("c", "p1", {"disc": 1})], modes=["in_context"]) == []


def test_slices_with_and_without_the_structure_are_looked_at() -> None:
    case = volume("a", "p1", {"disc": 1})
    assert chosen_slices(case, "disc", ValidationSettings(shown=2, absent=2)) == [1, 3, 5, 7]
    assert chosen_slices(case, "disc", ValidationSettings(shown=9, absent=0)) == [2, 3, 4, 5]
