# SPDX-License-Identifier: Apache-2.0
"""Metrics against values worked out by hand; those of a report, which MONAI computes, against plain implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.metrics_equality import distance_transform_hd95
from kprism_model.evaluation import monai_metrics
from kprism_model.evaluation.monai_metrics import hd95
from kprism_model.metrics import clicks_to_reach, dice


def square(top: int, left: int, size: int = 10, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_dice_of_known_masks() -> None:
    assert dice(square(5, 5), square(5, 5)) == 1
    assert dice(square(5, 5), square(10, 5)) == 0.5
    assert dice(square(5, 5), square(20, 30)) == 0
    assert dice(square(5, 5), square(5, 5) & False) == 0


def test_dice_of_two_empty_masks_is_the_given_value() -> None:
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert dice(empty, empty) == 1
    assert math.isnan(dice(empty, empty, empty=math.nan))


def test_hd95_of_a_shifted_square_is_the_shift_in_the_unit_of_the_spacing() -> None:
    assert hd95(square(5, 5), square(5, 5), (1, 1)) == 0
    thin = np.zeros((30, 30), dtype=bool)
    thin[4] = True
    assert hd95(thin, np.roll(thin, 7, axis=0), (0.5, 3.0)) == pytest.approx(3.5)
    assert hd95(thin, np.roll(thin, 7, axis=0), (2.0, 3.0)) == pytest.approx(14.0)


def test_hd95_is_the_greater_direction() -> None:
    large = square(0, 0, 40)
    small = square(0, 0, 4)
    assert hd95(small, large, (1, 1)) == hd95(large, small, (1, 1)) > 40


def random_masks(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Two masks with smooth outlines."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, *(3,) * len(shape)))
    return noise > noise.mean()


@pytest.mark.parametrize("shape", [(48, 40), (16, 24, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_a_report_equal_plain_implementations(shape: tuple[int, ...], seed: int) -> None:
    masks, spacing = random_masks(shape, seed), (1.5, 0.7, 2.0)[: len(shape)]
    assert monai_metrics.dice(*masks) == pytest.approx(dice(*masks), abs=1e-5)
    assert hd95(*masks, spacing) == pytest.approx(distance_transform_hd95(*masks, spacing), rel=1e-5)


def test_dice_of_a_report_on_empty_masks() -> None:
    empty, full = square(5, 5) & False, square(5, 5)
    assert monai_metrics.dice(empty, empty) == 1.0
    assert monai_metrics.dice(full, empty) == monai_metrics.dice(empty, full) == 0.0
    with pytest.raises(ValueError, match=r"\(40, 50\) and \(3, 3\)"):
        monai_metrics.dice(full, np.zeros((3, 3), dtype=bool))


def test_hd95_of_an_empty_mask_is_not_a_number() -> None:
    assert math.isnan(hd95(square(5, 5), square(5, 5) & False, (1, 1)))


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 0.0), (1.0, math.nan)])
def test_hd95_refuses_a_bad_spacing(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="2 positive numbers"):
        hd95(square(5, 5), square(5, 5), spacing)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(40, 50\) and \(3, 3\)"):
        dice(square(5, 5), np.zeros((3, 3), dtype=bool))


def test_clicks_to_reach() -> None:
    scores = [0.4, 0.86, 0.84, 0.91]
    assert [clicks_to_reach(scores, threshold) for threshold in (0.4, 0.85, 0.9, 0.95)] == [1, 2, 4, 20]
    assert clicks_to_reach(scores, 0.9, limit=3) == 3
    assert clicks_to_reach([], 0.9) == 20
