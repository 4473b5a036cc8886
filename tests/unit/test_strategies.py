# SPDX-License-Identifier: Apache-2.0
"""Which case comes next: scores of images, their calibration, the board that keeps them, and each strategy."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Prediction, Predictor
from lib.imaging.medical_image import MedicalImage
from lib.learning.scores import ScoreBoard, Scores, calibrated, distances, entropy, score_image
from lib.learning.strategies import by_disagreement, by_distance, by_uncertainty, make_strategies
from lib.networks import Network, Networks


class Store:
    """The part of a datastore that strategies ask."""

    def __init__(self, *images: str) -> None:
        self.images = list(images)
        self.labelled: set[str] = set()
        self.given: dict[str, dict[str, object]] = {}

    def get_unlabeled_images(self, label_tag: object, labels: object) -> list[str]:
        return [image for image in self.images if image not in self.labelled]

    def get_image_info(self, image: str) -> dict[str, object]:
        return self.given.get(image, {})

    def give_out(self, image: str, strategy: str = "random") -> None:
        self.given[image] = {"strategy": {strategy: {"ts": int(time.time())}}}


def scores(uncertainty: float, disagreement: float = 0.5, embedding: tuple[float, ...] = (1.0, 0.0)) -> Scores:
    return Scores({"liver": uncertainty}, {"liver": disagreement}, embedding)


class Board(ScoreBoard):
    """A board of given scores."""

    def __init__(self, folder: Path, known: dict[str, Scores]) -> None:
        super().__init__(folder, lambda: "v1", lambda: list(known), known.__getitem__)
        while self.step():
            pass


def test_every_strategy_says_that_nothing_is_left(tmp_path: Path) -> None:
    store = Store("a")
    store.labelled = {"a"}
    strategies = make_strategies(Board(tmp_path, {"a": scores(1.0)}))
    assert set(strategies) == {"random", "first", "uncertainty", "disagreement", "diverse"}
    assert all(strategy({"strategy": name}, store) is None for name, strategy in strategies.items())
    assert all(strategy({"strategy": name}, Store()) is None for name, strategy in strategies.items())


def test_first_and_random(tmp_path: Path) -> None:
    store = Store("c", "b", "a")
    strategies = make_strategies(Board(tmp_path, {}))
    assert strategies["first"]({}, store) == {"id": "a"}
    store.give_out("a")
    drawn = Counter(strategies["random"]({}, store)["id"] for _ in range(50))
    assert drawn["b"] > 0 and drawn["c"] > 0
    assert drawn["a"] == 0  # given out a moment ago: a chance of one in 10^9


def test_the_best_score_comes_first_and_what_was_given_out_waits(tmp_path: Path) -> None:
    store = Store("a", "b", "c")
    known = {"a": scores(0.1, 0.9), "b": scores(0.9, 0.1), "c": scores(0.5, 0.5), "gone": scores(9.0, 9.0)}
    strategies = make_strategies(Board(tmp_path, known))
    assert strategies["uncertainty"]({}, store)["id"] == "b"
    assert strategies["disagreement"]({}, store)["id"] == "a"
    store.give_out("b", "uncertainty")
    assert strategies["uncertainty"]({}, store)["id"] == "c"
    store.give_out("a")
    store.give_out("c")
    assert strategies["uncertainty"]({}, store)["id"] == "b"  # better again than nothing
    store.labelled = {"b", "c"}
    assert strategies["uncertainty"]({}, store)["id"] == "a"


def test_the_open_case_comes_next_only_if_there_is_no_other(tmp_path: Path) -> None:
    strategies = make_strategies(Board(tmp_path, {image: scores(1.0) for image in "ab"}))
    for name, strategy in strategies.items():
        store = Store("a", "b")
        given = {image: strategy({"strategy": name, "current": image}, store)["id"] for image in "ab"}
        assert given == {"a": "b", "b": "a"}, name
        store.labelled = {"b"}
        assert strategy({"strategy": name, "current": "a"}, store)["id"] == "a", name


def test_without_scores_a_random_case_is_given(tmp_path: Path) -> None:
    assert make_strategies(Board(tmp_path, {}))["uncertainty"]({}, Store("a"))["id"] == "a"


def test_random_can_mean_another_strategy(tmp_path: Path) -> None:
    board = Board(tmp_path, {"a": scores(0.1), "b": scores(0.9)})
    strategies = make_strategies(board, best="uncertainty")
    assert {strategies["random"]({}, Store("a", "b"))["id"] for _ in range(5)} == {"b"}
    with pytest.raises(ValueError, match="strategy 'bets' is unknown; expected one of random, first"):
        make_strategies(board, best="bets")


def test_figures_are_compared_with_what_is_usual_for_a_structure() -> None:
    values = {"a": {"vessel": 0.9, "liver": 0.1}, "b": {"vessel": 1.1, "liver": 0.3}, "c": {"vessel": 1.0}, "d": {}}
    ranks = calibrated(values)
    assert ranks == pytest.approx({"a": (0.9 + 0.5) / 2, "b": (1.1 + 1.5) / 2, "c": 1.0})
    known = {image: Scores(figures, {}, (0.0,)) for image, figures in values.items()}
    assert by_uncertainty(known, {"a", "c", "d"}) == pytest.approx({"a": 0.7, "c": 1.0})
    assert by_disagreement(known, {"a"}) == {}


def test_the_case_unlike_all_labelled_ones_is_farthest() -> None:
    labelled = [(1.0, 0.1), (0.9, 0.0)]
    found = distances({"like": (1.0, 0.0), "unlike": (-1.0, 0.2)}, labelled)
    assert found["unlike"] > 1.5 > 0.5 > found["like"] >= 0
    lone = distances({"middle": (0.0, 0.0), "left": (-2.0, 0.0), "right": (2.0, 0.1)}, [])
    assert lone["left"] > lone["middle"] and lone["right"] > lone["middle"]
    known = {"x": scores(1.0, embedding=(1.0, 0.1)), "p": scores(1.0, embedding=(-1.0, 0.0))}
    assert list(by_distance(known, {"p"})) == ["p"]
    assert distances({}, labelled) == {}


def prediction(probability: np.ndarray, presence: float) -> Prediction:
    return Prediction(probability >= 0.5, probability.astype(np.float32), presence)


def test_entropy_is_that_of_mask_and_presence() -> None:
    sure = prediction(np.array([[1.0, 1.0, 0.0, 0.0]]), 1.0)
    assert entropy(sure) == pytest.approx(0.0, abs=1e-4)
    assert entropy(prediction(np.zeros((2, 2)), 0.5)) == pytest.approx(np.log(2), abs=1e-4)
    half = prediction(np.array([[1.0, 1.0, 1.0, 0.5]]), 1.0)
    assert entropy(half) == pytest.approx(np.log(2) / 3.5, abs=1e-4)
    assert entropy(prediction(np.full((2, 2), 0.5), 1.0)) == pytest.approx(np.log(2), abs=1e-4)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(num_classes=2)), ClassRegistry(["liver", "spleen"]))


def volume(slices: int) -> MedicalImage:
    values = np.random.default_rng(0).random((64, 48, slices), np.float32)
    return MedicalImage("image 'v'", values, np.diag([1.0, 1.0, 3.0, 1.0]), 3, ".nii.gz", "digest")


def test_an_image_is_scored_on_a_few_slices(predictor: Predictor, tmp_path: Path) -> None:
    image = volume(9)
    references = predictor.embed_references([image.scaled[0]], [image.scaled[0] > 0.7])
    passes = predictor.encoder_passes
    networks = Networks(Network("shipped", predictor, predictor.registry, "v1", "cpu", tmp_path))
    found = score_image(networks, image, lambda name, _: references if name == "liver" else None)
    assert predictor.encoder_passes - passes == 3
    assert set(found.uncertainty) == {"liver", "spleen"} and set(found.disagreement) == {"liver"}
    assert all(value >= 0 for value in found.uncertainty.values())
    assert 0 <= found.disagreement["liver"] <= 1
    assert len(found.embedding) == predictor.model.config.encoder_channels[0]
    assert len(score_image(networks, volume(1), lambda *_: None).embedding) == len(found.embedding)


def test_scores_are_kept_over_restarts_and_computed_anew_for_new_weights(tmp_path: Path) -> None:
    version, asked = "v1", []

    def score(image: str) -> Scores:
        asked.append(image)
        if image == "broken":
            raise ValueError("image 'broken' is empty")
        return scores(0.25)

    def board() -> ScoreBoard:
        return ScoreBoard(tmp_path, lambda: version, lambda: ["a", "broken"], score)

    first = board()
    while first.step():
        pass
    first.save()
    assert asked == ["a", "broken"] and first.scores() == {"a": scores(0.25)}
    assert board().scores() == {"a": Scores({"liver": 0.25}, {"liver": 0.5}, [1.0, 0.0])}
    version = "v2"
    assert first.scores() == {}
    assert first.step() and first.scores() == {"a": scores(0.25)}
    first.save()
    assert [path.name for path in tmp_path.glob("*.json")] == ["scores-v2.json"]
    (tmp_path / "scores-v2.json").write_text("[")
    assert board().scores() == {}


def test_the_background_waits_while_the_server_is_busy(tmp_path: Path) -> None:
    busy, scored = threading.Event(), threading.Event()
    busy.set()

    def score(image: str) -> Scores:
        scored.set()
        return scores(1.0)

    board = ScoreBoard(tmp_path, lambda: "v1", lambda: ["a"], score, busy=busy.is_set)
    board.start()
    assert not scored.wait(0.3)
    busy.clear()
    assert scored.wait(30)
    board.stop()
    assert set(board.scores()) == {"a"}
