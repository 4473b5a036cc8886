# SPDX-License-Identifier: Apache-2.0
"""What the gate measures of the new weights: folds on patients that they never saw, mixed with the shipped weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import Checkpoint, load_checkpoint
from kprism_model.data.partial import AnnotatedCase
from kprism_model.network.kprism import KPrism
from kprism_model.training.validation import Score
from kprism_model.training.weights import average_weights
from lib.learning.submission_store import Submission
from lib.learning.versions import Served
from lib.trainers.case_cache import KeptSlices, ReducedCase
from lib.trainers.finetune_dataset import FinetuneDataset, build_dataset
from lib.trainers.judged_scores import SETTINGS
from lib.trainers.judging import Judge, Trained
from tests.tiny_network import SIDE, STRUCTURES, WEIGHTS, drawn


@pytest.fixture(scope="module")
def taught() -> Checkpoint:
    return load_checkpoint(WEIGHTS)


@pytest.fixture(scope="module")
def untaught(taught: Checkpoint) -> KPrism:
    torch.manual_seed(0)
    return KPrism(taught.model.config).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> FinetuneDataset:
    """Six patients."""
    return dataset_of("abcdef", tmp_path_factory.mktemp("dataset"))


def dataset_of(patients: str, folder: Path) -> FinetuneDataset:
    """Patients in two folds, each with an image of what the network was taught."""
    rng = np.random.default_rng(1)
    structures = {name: value for value, name in enumerate(STRUCTURES, 1)}

    def load(submission: Submission) -> ReducedCase:
        image, label = drawn(rng)
        case = AnnotatedCase(submission.image_id, submission.patient, image[None], label[None], structures)
        return ReducedCase(case, KeptSlices((0,), (SIDE, SIDE)))

    submissions = [
        Submission(name, name, n % 2, structures, "", "", "", name, "", n) for n, name in enumerate(patients)
    ]
    return build_dataset(submissions, load, folder, size=SIDE, settings=SETTINGS)


def judge_of(dataset: FinetuneDataset, shipped: Checkpoint, path: Path) -> Judge:
    served = Served(0, shipped.weights_version, shipped)
    return Judge(dataset, served, path / "scores.json", "cpu", in_context=False, report=lambda message: None)


def test_good_weights_are_hardly_mixed(
    dataset: FinetuneDataset, taught: Checkpoint, untaught: KPrism, tmp_path: Path
) -> None:
    shipped = Checkpoint(untaught, taught.registry, {}, "untaught", tmp_path / "shipped")
    folds = dict.fromkeys((0, 1), (taught.model, taught.registry))
    share, scores = judge_of(dataset, shipped, tmp_path).scores_of_folds(folds)
    assert share >= 0.75
    assert {score.mode for score in scores} == {"semantic", "interactive"}
    assert sorted({score.case for score in scores}) == list("abcdef")


def test_with_few_patients_at_most_half_of_the_weights_are_trained_ones(
    taught: Checkpoint, untaught: KPrism, tmp_path: Path
) -> None:
    few = dataset_of("abc", tmp_path)
    shipped = Checkpoint(untaught, taught.registry, {}, "untaught", tmp_path / "shipped")
    share, scores = judge_of(few, shipped, tmp_path).scores_of_folds(
        dict.fromkeys((0, 1), (taught.model, taught.registry))
    )
    assert share <= 0.5 and sorted({score.case for score in scores}) == list("abc")


def test_weights_that_have_lost_what_was_known_are_mixed_with_shipped_ones(
    dataset: FinetuneDataset, taught: Checkpoint, untaught: KPrism, tmp_path: Path
) -> None:
    spoilt, _ = average_weights([(taught.model, taught.registry), (untaught, taught.registry)], [0.6, 0.4])
    judge = judge_of(dataset, taught, tmp_path)
    folds = dict.fromkeys((0, 1), (spoilt, taught.registry))
    share, scores = judge.scores_of_folds(folds)
    assert share <= 0.5
    mixture, _ = average_weights([(spoilt, taught.registry), (taught.model, taught.registry)], [share, 1 - share])
    same = judge_of(dataset, Checkpoint(mixture, taught.registry, {}, "mixture", tmp_path), tmp_path)
    _, expected = same.scores_of_folds(dict.fromkeys((0, 1), (mixture, taught.registry)))
    assert [score.dice for score in scores] == pytest.approx([score.dice for score in expected], abs=1e-4)


class KnownDice(Judge):
    """Measures what is written here: by name the trained weights are a little better alone, by clicks half of them."""

    def _scores_of_folds(self, folds: Mapping[int, Trained], share: float, modes: Sequence[str]) -> list[Score]:
        found = {"semantic": 0.8 + 0.02 * share, "interactive": 0.9 - abs(share - 0.5), "in_context": share}
        return [Score(mode, "disc", "a", found[mode], 0, np.zeros((2, 2), bool)) for mode in modes]


def test_the_share_is_chosen_by_name_and_by_clicks(
    dataset: FinetuneDataset, taught: Checkpoint, tmp_path: Path
) -> None:
    served = Served(0, taught.weights_version, taught)
    judge = KnownDice(dataset, served, tmp_path / "scores.json", "cpu", in_context=True, report=lambda message: None)
    share, scores = judge.scores_of_folds({0: (taught.model, taught.registry)})
    assert share == 0.5
    assert {score.mode: score.dice for score in scores} == {"semantic": 0.81, "interactive": 0.9, "in_context": 0.5}
