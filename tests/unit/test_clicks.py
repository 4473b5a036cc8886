# SPDX-License-Identifier: Apache-2.0
"""The simulated annotator: clicks at the centre of the largest error, scribbles inside the structure."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from kprism_model.interaction.clicks import next_click, next_clicks, simulate_scribble

EIGHT_CONNECTED = np.ones((3, 3))


def smooth_masks(count: int, size: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    return ndimage.gaussian_filter(noise, (0, size / 16, size / 16)) > 0


def disc(size: int, row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_click_is_the_centre_of_the_missed_structure() -> None:
    target = disc(64, 20, 31, 9)
    assert next_click(np.zeros_like(target), target) == (20.0, 31.0, True)


def test_click_is_negative_on_a_spurious_region() -> None:
    target, spurious = disc(64, 15, 15, 6), disc(64, 45, 40, 10)
    assert next_click(target | spurious, target) == (45.0, 40.0, False)


def test_larger_of_two_errors_wins() -> None:
    target, spurious = disc(64, 15, 15, 8), disc(64, 45, 40, 6)
    assert next_click(spurious, target) == (15.0, 15.0, True)


def test_touching_missed_and_spurious_pixels_stay_two_regions() -> None:
    target, prediction = np.zeros((20, 30), dtype=bool), np.zeros((20, 30), dtype=bool)
    target[5:14, 0:9] = True
    prediction[5:12, 9:16] = True
    assert next_click(prediction, target) == (9.0, 4.0, True)


def test_diagonal_neighbours_are_one_region() -> None:
    target = np.zeros((12, 12), dtype=bool)
    target[1:4, 1:4] = target[4:7, 4:7] = True  # 18 pixels that touch at a corner
    target[9:12, 0:5] = True  # 15 pixels
    click = next_click(np.zeros_like(target), target)
    assert click is not None and click[0] < 7


def test_image_border_is_an_edge() -> None:
    target = np.ones((21, 41), dtype=bool)
    assert next_click(np.zeros_like(target), target) == (10.0, 20.0, True)


def test_no_click_without_an_error() -> None:
    target = disc(32, 10, 10, 4)
    assert next_click(target, target) is None


@pytest.mark.parametrize("size", [128, 301, 640])
def test_large_regions_are_clicked_near_their_centre(size: int) -> None:
    target = disc(size, size * 0.4, size * 0.55, size * 0.3)
    click = next_click(np.zeros_like(target), target)
    assert click is not None
    assert np.hypot(click[0] - size * 0.4, click[1] - size * 0.55) <= size / 96 + 1


def test_a_long_thin_region_is_clicked_inside() -> None:
    target = np.zeros((400, 400), dtype=bool)
    target[np.arange(400), np.arange(400)] = True
    click = next_click(np.zeros_like(target), target)
    assert click is not None and click[0] == click[1] and 150 < click[0] < 250


@given(
    arrays(bool, (17, 23)),
    arrays(bool, (17, 23)),
    st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)
def test_click_lies_in_the_largest_error(prediction: np.ndarray, target: np.ndarray, seed: int | None) -> None:
    click = next_click(prediction, target, rng=None if seed is None else np.random.default_rng(seed))
    if click is None:
        assert (prediction == target).all()
        return
    row, column, positive = click
    components = [ndimage.label(region, EIGHT_CONNECTED)[0] for region in (prediction & ~target, target & ~prediction)]
    sizes = [np.bincount(labels.ravel())[1:].max(initial=0) for labels in components]
    clicked = components[int(positive)]
    assert clicked[int(row), int(column)] > 0
    assert (clicked == clicked[int(row), int(column)]).sum() == max(sizes)


def test_jitter_stays_in_the_inner_part() -> None:
    target = disc(64, 30, 30, 20)
    rng = np.random.default_rng(0)
    clicks = np.array([next_click(np.zeros_like(target), target, rng=rng) for _ in range(200)])
    distance = np.hypot(clicks[:, 0] - 30, clicks[:, 1] - 30)
    assert distance.max() <= 11 and distance.std() > 1


def test_batch_agrees_with_single_clicks_and_pads() -> None:
    predictions, targets = smooth_masks(5, 64, 0), smooth_masks(5, 64, 1)
    predictions[3] = targets[3]
    points, labels = next_clicks(predictions, targets)
    assert labels[3] == -1 and points[3].tolist() == [-1, -1]
    for index in (0, 1, 2, 4):
        row, column, positive = next_click(predictions[index], targets[index])
        assert points[index].tolist() == [row, column] and labels[index] == positive


def test_jittered_batch_is_reproducible_on_any_number_of_threads() -> None:
    predictions, targets = smooth_masks(6, 64, 0), smooth_masks(6, 64, 1)
    first, second = (
        next_clicks(predictions, targets, rng=np.random.default_rng(3), workers=workers)[0] for workers in (1, 2)
    )
    assert (first == second).all()
    assert (first != next_clicks(predictions, targets, rng=np.random.default_rng(4))[0]).any()


def test_eight_masks_cost_a_small_part_of_a_training_step() -> None:
    predictions, targets = smooth_masks(8, 128, 0), smooth_masks(8, 128, 1)
    next_clicks(predictions, targets)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        next_clicks(predictions, targets)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05  # measured 0.007; a full-size distance transform of each error map takes 0.02


@pytest.mark.parametrize("shapes", [((4, 5), (5, 4)), ((4,), (4,))])
def test_shapes_must_agree(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"not \(4"):
        next_click(np.zeros(shapes[0], dtype=bool), np.zeros(shapes[1], dtype=bool))
    with pytest.raises(ValueError, match="N, H, W"):
        next_clicks(np.zeros(shapes[0], dtype=bool), np.zeros(shapes[1], dtype=bool))


@pytest.mark.parametrize("seed", range(20))
def test_scribble_is_one_stroke_inside_the_region(seed: int) -> None:
    region = smooth_masks(1, 96, seed)[0]
    stroke = simulate_scribble(region, np.random.default_rng(seed))
    assert 0 < stroke.sum() < 0.5 * region.sum()
    assert not (stroke & ~region).any()
    assert ndimage.label(stroke, EIGHT_CONNECTED)[1] == 1


def test_scribbles_follow_the_longer_axis() -> None:
    region = np.zeros((40, 200), dtype=bool)
    region[10:30, 10:190] = True
    rng = np.random.default_rng(0)
    extents = [np.ptp(np.argwhere(simulate_scribble(region, rng)), axis=0) for _ in range(20)]
    assert np.median(extents, axis=0)[1] > 3 * np.median(extents, axis=0)[0]


@given(arrays(bool, (11, 14)).filter(np.any), st.integers(0, 2**32 - 1))
def test_scribble_in_any_region_is_legal(region: np.ndarray, seed: int) -> None:
    stroke = simulate_scribble(region, np.random.default_rng(seed))
    assert stroke.any() and not (stroke & ~region).any()


def test_scribble_needs_a_region() -> None:
    with pytest.raises(ValueError, match="empty"):
        simulate_scribble(np.zeros((5, 5), dtype=bool), np.random.default_rng(0))
