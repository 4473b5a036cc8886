# SPDX-License-Identifier: Apache-2.0
"""The simulated user in a volume and the tables of `benchmarks.propagation`, on a small network with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.propagation import after_clicks
from benchmarks.propagation_tables import tables
from benchmarks.volume_samples import Sample, resampled
from benchmarks.volume_user import METHODS, Method, UserInVolume, between_slices, clicks_to_target, spread
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.volumes.predictor import PropagationRules, Volume

FOLLOW_ALL = Method(PropagationRules(presence=0))
"""Random weights are sure of nothing; with these rules they follow all the same."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(native_size=32)), ClassRegistry(("a", "b", "c", "d")))


@pytest.fixture
def sample() -> Sample:
    """A disc of radius 5 on slices 3 to 7 of eleven."""
    rows, columns = np.ogrid[:24, :20]
    true = np.zeros((11, 24, 20), bool)
    true[3:8] = (rows - 12) ** 2 + (columns - 9) ** 2 <= 25
    stored = (true * 100 + np.random.default_rng(0).integers(0, 9, true.shape)).transpose(2, 1, 0)
    volume = Volume.of(stored, np.diag([-1, -1, 3, 1]))
    return Sample("discs", "one", "disc", volume, volume.orientation.to_slices(true.transpose(2, 1, 0)))


def test_slices_claimed_and_missed_are_counted_for_each_end(predictor: Predictor, sample: Sample) -> None:
    alone = after_clicks(predictor, sample, METHODS["every slice clicked"], clicks=3)
    assert alone["ends"] == [{"beyond": 0, "missed": 2}, {"beyond": 0, "missed": 2}]
    assert alone["voxels_beyond"] == 0 and alone["propagated_slices"] == 0
    user = UserInVolume(predictor, sample, FOLLOW_ALL)
    for _ in range(3):
        user.click(sample.middle)
        user.predict(propagate=False)
    user.predict()
    shown = user.mask.any(axis=(1, 2))
    whole = after_clicks(predictor, sample, FOLLOW_ALL, clicks=3)
    assert [end["beyond"] for end in whole["ends"]] == [shown[:3].sum(), shown[8:].sum()]
    assert [end["missed"] for end in whole["ends"]] == [2 - shown[3:5].sum(), 2 - shown[6:8].sum()]
    assert whole["voxels_beyond"] == user.mask[[0, 1, 2, 8, 9, 10]].sum() / user.mask.sum()


def test_a_user_confirms_what_is_right(predictor: Predictor, sample: Sample) -> None:
    user = UserInVolume(predictor, sample, FOLLOW_ALL)
    user.mask = sample.true.copy()
    user.click(5)
    user.click(0)
    assert [(user.slice_of(click), click.positive) for click in user.clicks] == [(5, True), (0, False)]


def test_a_user_without_advice_looks_into_the_largest_gap(predictor: Predictor, sample: Sample) -> None:
    user = UserInVolume(predictor, sample, METHODS["every slice clicked"])
    seen = []
    for number in (5, 1):
        user.click(number)
        user.predict()
        seen.append(spread(user))
    assert seen == [5, 3]  # nothing but slice 5 is shown at first; then the gap is 1 to 5


def test_shapes_between_clicked_slices_and_nothing_beyond(sample: Sample) -> None:
    clicked = np.zeros_like(sample.true)
    clicked[[3, 7]] = sample.true[[3, 7]]
    np.testing.assert_array_equal(between_slices(clicked, (3, 7)), sample.true)
    np.testing.assert_array_equal(between_slices(clicked, (3, 5, 7)), clicked)  # slice 5 was clicked as empty


def test_a_target_that_is_not_reached_is_none(predictor: Predictor, sample: Sample) -> None:
    user = UserInVolume(predictor, sample, METHODS["every slice clicked"])
    assert clicks_to_target(user, "worst", limit=2) is None
    assert len(user.clicks) == 2


def test_an_enlarged_sample_shows_the_same(sample: Sample) -> None:
    large = resampled(sample, (22, 48, 40))
    assert large.volume.images.shape == large.true.shape == (22, 48, 40)
    assert large.volume.orientation.spacing == pytest.approx((1.5, 0.5, 0.5), rel=0.1)
    assert large.true.mean() == pytest.approx(sample.true.mean(), rel=0.1)
    assert large.volume.images[large.true].mean() > 5 * large.volume.images[~large.true].mean()


def test_the_tables_hold_means_and_shares() -> None:
    def structure(name: str, dice: float, beyond: int, clicks: int | None) -> dict[str, object]:
        ends = [{"beyond": beyond, "missed": 0}, {"beyond": 0, "missed": 1}]
        figures = {"slice_dice": 0.9, "volume_dice": dice, "voxels_beyond": 0.1, "ends": ends}
        figures |= {"propagated_slices": 10, "seconds": 2.0}
        needed = {"propagated, worst": clicks}
        return {"dataset": "set", "structure": name, "after_clicks": {"propagated": figures}, "clicks_needed": needed}

    settings = {"split": "test", "clicks": 3, "limit": 20, "threads": 2}
    structures = [structure("a", 0.5, 4, None), structure("b", 0.7, 0, 4)]
    lines = list(tables({"settings": settings, "weights": "w", "structures": structures, "ct": []}))
    assert "| set | **mean** | propagated | 2 | 0.900 | 0.600 | 10 % | 1.0 | 0.5 | 5.0 |" in lines
    assert "| set | a | 1 | 20.0 (100 %) |" in lines
    assert "| set | **mean** | 2 | 12.0 (50 %) |" in lines
