# SPDX-License-Identifier: Apache-2.0
"""Structures of many instances: which they are, which instances are clicked, and their figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.data.datasets import read_dataset
from kprism_model.evaluation.evaluate import evaluate
from kprism_model.evaluation.instances import InstanceSampling, instance_classes
from kprism_model.evaluation.protocol import PROTOCOLS, Protocol
from kprism_model.evaluation.report import DatasetResult, EvaluationReport, Figure
from kprism_model.evaluation.report_tables import to_markdown
from kprism_model.evaluation.scores import (
    CLICKS_ONLY,
    ScoreAccumulator,
    Slice,
    Target,
    measure_click_sessions,
    measure_presence,
)
from kprism_model.interaction.click_sessions import ClickSession
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Prediction, Predictor
from kprism_model.queries import Query
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 48


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(num_classes=1)), ClassRegistry(["nucleus"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and two validation pictures of nine nuclei of 6 x 6 pixels, one speck of 4, and two lungs."""
    labels = [nuclei(shift) + lungs() for shift in range(8)]
    folder = write_dataset(tmp_path_factory.mktemp("data") / "nuclei", labels, classes=["nucleus", "lungs"])
    content = json.loads((folder / "dataset.json").read_text())
    content["training"], content["validation"] = content["training"][:6], content["training"][6:]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def nuclei(shift: int = 0) -> np.ndarray:
    label = np.zeros((SIZE, SIZE), np.uint8)
    for row in (0, 10, 20):
        for column in (shift, shift + 10, shift + 20):
            label[row : row + 6, column : column + 6] = 1
    label[28:30, 0:2] = 1
    return label


def lungs() -> np.ndarray:
    return rectangle((SIZE, SIZE), slice(32, 46), slice(2, 20), 2) + rectangle(
        (SIZE, SIZE), slice(32, 46), slice(26, 44), 2
    )


def target(predictor: Predictor, mask: np.ndarray, case: str = "case", number: int = 0) -> Target:
    image = np.zeros((SIZE, SIZE), np.float32)
    image_slice = Slice(case, case, number, image, mask.astype(np.uint8), None, None, predictor.embed([image])[0])
    return Target(image_slice, 1, "nucleus", mask.astype(bool))


def test_many_small_components_are_instances_and_few_or_unequal_ones_are_not(folder: Path, tmp_path: Path) -> None:
    assert instance_classes(read_dataset(folder)) == {1: "nucleus"}
    trunk = rectangle((SIZE, SIZE), slice(0, 48), slice(0, 20))
    trunk[:, 24:] = nuclei()[:, :24]
    three = nuclei() * (np.arange(SIZE)[:, None] < 8)
    for name, label in (("vessels", trunk), ("three", three), ("none", 0 * trunk)):
        assert instance_classes(read_dataset(write_dataset(tmp_path / name, [label] * 2))) == {}
    test = write_dataset(tmp_path / "test_only", [nuclei()] * 2, classes=["cell"], split="test")
    assert instance_classes(read_dataset(test)) == {1: "cell"}


def test_the_training_list_says_what_is_an_instance(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "mixed", [nuclei(), nuclei(1), lungs() // 2, lungs() // 2, lungs() // 2])
    content = json.loads((folder / "dataset.json").read_text())
    content["training"], content["test"] = content["training"][:2], content["training"][2:]
    (folder / "dataset.json").write_text(json.dumps(content))
    assert instance_classes(read_dataset(folder)) == {1: "disc"}


def test_instances_are_drawn_by_seed_whatever_else_is_asked(predictor: Predictor) -> None:
    one, other = target(predictor, nuclei()), target(predictor, nuclei(), "other")
    sampling = InstanceSampling([1], seed=0)
    drawn = sampling.clicked([one])
    assert [int(instance.mask.sum()) for instance in drawn] == [36] * 4
    union = np.any([instance.mask for instance in drawn], axis=0)
    assert union.sum() == 4 * 36 and not (union & ~one.mask).any()

    def corners(drawn: Sequence[Target]) -> list[list[int]]:
        return [np.argwhere(instance.mask)[0].tolist() for instance in drawn]

    assert corners(sampling.clicked([other, one])[4:]) == corners(drawn)
    draws = [corners(InstanceSampling([1], seed).clicked([one])) for seed in range(5)]
    assert len({str(draw) for draw in draws}) > 1
    cases = [corners(sampling.clicked([target(predictor, nuclei(), name)])) for name in "abcde"]
    assert len({str(case) for case in cases}) > 1
    assert len(InstanceSampling([1], 0, maximum_per_image=20).clicked([one])) == 9  # the speck is too small
    assert InstanceSampling([2], 0).clicked([one]) == [one]


def test_figures_are_means_over_instances_then_over_images(predictor: Predictor) -> None:
    first, second = target(predictor, nuclei()), target(predictor, nuclei(), "other")
    sampling = InstanceSampling([1], 0, maximum_per_image=2)
    targets = sampling.clicked([first, second])[:3]
    sessions = []
    for one, scores in zip(targets, ([0.5] * 4 + [0.95], [0.95] * 5, [0.87] + [0.95] * 4), strict=True):
        session = ClickSession(Query(one.image_slice.embedding), one.mask, None)
        session.scores.extend(scores)
        sessions.append(session)
    accumulator = ScoreAccumulator("set", instance_classes=["nucleus"])
    measure_click_sessions(accumulator, CLICKS_ONLY, targets, sessions, 20)
    measure_click_sessions(accumulator, "semantic+interactive", [first, second], sessions[:2], 20)
    figures = {figure.name: figure for figure in accumulator.figures() if figure.mode == CLICKS_ONLY}
    assert figures["dice_1"].value == pytest.approx(((0.5 + 0.95) / 2 + 0.87) / 2) and figures["dice_1"].count == 2
    assert figures["noc90"].value == pytest.approx(((5 + 1) / 2 + 2) / 2)
    assert figures["noc85"].value == pytest.approx(((5 + 1) / 2 + 1) / 2)
    curve = next(curve for curve in accumulator.curves() if curve.mode == CLICKS_ONLY)
    assert curve.reached[:6] == pytest.approx([0, 0.25, 0.75, 0.75, 0.75, 1])
    assert all(figure.name != "clicks_saved" for figure in accumulator.figures())


def test_presence_is_found_where_it_overlaps_and_false_where_anything_is_painted(predictor: Predictor) -> None:
    box, far = np.zeros((2, SIZE, SIZE), bool)
    box[:5, :5], far[20:25, 20:25] = True, True
    speck = np.zeros_like(box)
    speck[0, :19] = True
    asked = [  # true mask, painted mask, presence, what it adds
        (box, box, 0.9, ("detection_rate", 1.0)),
        (box, far, 0.9, ("detection_rate", 0.0)),
        (box, box, 0.4, ("detection_rate", 0.0)),
        (speck, speck, 0.9, None),
        (0 * box, far, 0.9, ("false_positive_rate", 1.0)),
        (0 * box, far, 0.4, ("false_positive_rate", 0.0)),
        (0 * box, 0 * far, 0.9, ("false_positive_rate", 0.0)),
    ]
    for true, painted, presence, added in asked:
        accumulator = ScoreAccumulator("set")
        prediction = Prediction(painted.astype(bool), painted.astype(np.float32), presence)
        measure_presence(accumulator, "semantic", [target(predictor, true)], [prediction])
        assert [(figure.name, figure.value) for figure in accumulator.figures()] == ([added] if added else [])


def test_shares_of_questions_are_pooled_over_classes() -> None:
    figures = [
        Figure("set", "nucleus", "semantic", "false_positive_rate", 1.0, 1),
        Figure("set", "other kinds", "semantic", "false_positive_rate", 0.0, 9),
        Figure("set", "nucleus", "semantic", "dice_present", 1.0, 1),
        Figure("set", "lungs", "semantic", "dice_present", 0.0, 9),
    ]
    report = EvaluationReport({}, [DatasetResult("set", "", "all", figures)])
    assert report.by_dataset("semantic", "false_positive_rate") == {"set": pytest.approx(0.1)}
    assert report.by_dataset("semantic", "dice_present") == {"set": 0.5}


def test_instances_are_clicked_one_by_one_and_asked_for_together(predictor: Predictor, folder: Path) -> None:
    reports = {
        name: evaluate(
            predictor,
            [folder],
            Protocol(split="validation", references=(1, 2), draws=1, click_limit=5, name=name),
            progress=False,
        )
        for name in PROTOCOLS
    }
    new, first = reports["instances"], reports["first"]
    assert new.protocol["protocol"] == "instances" and new.protocol["instances_per_image"] == 4
    assert first.protocol["protocol"] == "first" and "instances_per_image" not in first.protocol
    assert new.results[0].notes[-1] == "nuclei: clicked one instance at a time, at most 4 an image: nucleus"
    for mode in ("in_context_2", "semantic+interactive", "in_context_2+interactive"):
        values = {report.value("nuclei", "nucleus", mode, figure_of(mode)) for report in (new, first)}
        assert len(values) == 1
    assert new.value("nuclei", "lungs", CLICKS_ONLY, "dice_5") == first.value("nuclei", "lungs", CLICKS_ONLY, "dice_5")
    names = {(figure.mode, figure.name) for figure in new.figures if figure.class_name == "nucleus"}
    assert ("semantic", "detection_rate") in names and ("semantic+interactive", "clicks_saved") not in names
    assert "| found |" in to_markdown(new) and "| found |" not in to_markdown(first)
    clicked = new.figure("nuclei", "nucleus", CLICKS_ONLY, "dice_1")
    together = first.figure("nuclei", "nucleus", CLICKS_ONLY, "dice_1")
    assert clicked is not None and together is not None
    assert clicked.count == together.count == 2 and clicked.value != together.value


def test_a_list_without_cases_is_a_note(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    bare = write_dataset(tmp_path / "bare", [nuclei()] * 2, classes=["nucleus"])
    report = evaluate(predictor, [bare], Protocol(split="validation"), progress=False)
    assert report.results[0].notes == ["bare: the validation list has no labelled case"] and not report.figures


def figure_of(mode: str) -> str:
    return "noc90" if "+" in mode else "dice_present"
