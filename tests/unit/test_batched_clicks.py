# SPDX-License-Identifier: Apache-2.0
"""The batched simulated user's clicks and scribbles, against the row-wise ones of SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from kprism_model.interaction import clicks
from kprism_model.interaction.batched_clicks import next_clicks
from kprism_model.interaction.batched_regions import component_labels, drawn_pixel, largest_component, squared_distance
from kprism_model.interaction.batched_scribbles import (
    SCRIBBLE_CHANCES,
    STROKE_CHANCES,
    scribbles,
    spread_points,
    strokes,
)
from kprism_model.scribbles import SCRIBBLE_POINTS, scribble_points
from tests.unit.unsynchronised import Unsynchronised

EIGHT_CONNECTED = np.ones((3, 3))


def blobs(count: int, size: int, seed: int, detail: float = 16) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((count, size, size))
    return ndimage.gaussian_filter(noise, (0, size / detail, size / detail)) > 0


def lines(count: int, size: int, seed: int) -> np.ndarray:
    """Some straight lines of one pixel's width in each mask."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), bool)
    for mask in masks:
        for start, end in rng.integers(size, size=(3, 2, 2)):
            rows, columns = np.rint(np.linspace(start, end, 2 * size)).astype(int).T
            mask[rows, columns] = True
    return masks


def rings(count: int, size: int, seed: int) -> np.ndarray:
    """Rings, some cut by the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    centres, radii = rng.uniform(0, size, (count, 2, 1, 1)), rng.uniform(size / 8, size / 3, count)
    distance = np.hypot(rows - centres[:, 0], columns - centres[:, 1])
    return np.abs(distance - radii[:, None, None]) < rng.uniform(0.6, 5, count)[:, None, None]


def noise(count: int, size: int, seed: int) -> np.ndarray:
    """Single pixels near the density at which they begin to join."""
    return np.random.default_rng(seed).random((count, size, size)) < 0.41


def maze(size: int) -> np.ndarray:
    """One path back and forth across the image, one pixel wide."""
    mask = np.zeros((size, size), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def spiral(size: int) -> np.ndarray:
    mask, low, high = np.zeros((size, size), bool), 0, size - 1
    while low <= high:
        mask[low, max(low - 2, 0) : high + 1] = mask[low : high + 1, high] = mask[high, low : high + 1] = True
        mask[low + 2 : high + 1, low] = True
        low, high = low + 2, high - 2
    return mask


def special(size: int) -> np.ndarray:
    """Nothing, all, one pixel in a corner, two equal squares, a band along the border, long windings."""
    masks = np.zeros((9, size, size), bool)
    masks[1] = True
    masks[2, -1, -1] = True
    masks[3, 2:9, 5:12] = masks[3, 20:27, 22:29] = True
    masks[4, :4] = True
    masks[5:] = spiral(size), spiral(size).T[::-1], maze(size), maze(size).T[:, ::-1]
    return masks


KINDS: dict[str, Callable[[int], np.ndarray]] = {
    "blobs": lambda size: blobs(16, size, 0),
    "small blobs": lambda size: blobs(16, size, 1, 40),
    "lines": lambda size: lines(16, size, 2),
    "rings": lambda size: rings(16, size, 3),
    "noise": lambda size: noise(8, size, 4),
    "special": special,
}


def depth_of(region: np.ndarray) -> np.ndarray:
    return ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize("kind", KINDS)
def test_components_are_scipys(kind: str, size: int) -> None:
    masks = KINDS[kind](size)
    found = component_labels(torch.from_numpy(masks)).numpy()
    for labels, mask in zip(found, masks, strict=True):
        expected, count = ndimage.label(mask, EIGHT_CONNECTED)
        first = np.full(count + 1, size * size)
        np.minimum.at(first, expected.ravel(), np.arange(size * size))
        first[0] = size * size
        assert np.array_equal(labels, first[expected])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("border", [True, False])
def test_distances_are_scipys(kind: str, border: bool) -> None:
    masks = KINDS[kind](70)[:, :51]
    found = squared_distance(torch.from_numpy(masks), border=border).sqrt().numpy()
    for distance, mask in zip(found, masks, strict=True):
        if not border and mask.all():
            assert (distance > 70).all()
        else:
            expected = depth_of(mask) if border else ndimage.distance_transform_edt(mask)
            np.testing.assert_allclose(distance, expected, rtol=1e-6)


def test_distances_up_to_a_reach() -> None:
    mask = torch.from_numpy(blobs(4, 64, 0))
    far, near = (squared_distance(mask, border=False, reach=reach) for reach in (None, 5))
    assert torch.equal(near[far <= 25], far[far <= 25]) and (near[far > 25] > 25).all()


@pytest.mark.parametrize("size", [64, 144])
@pytest.mark.parametrize("kind", KINDS)
def test_clicks_are_scipys(kind: str, size: int) -> None:
    targets = KINDS[kind](size)
    for predictions in (np.zeros_like(targets), np.roll(targets, 5, axis=2), blobs(len(targets), size, 7)):
        points, labels = next_clicks(torch.from_numpy(predictions), torch.from_numpy(targets))
        expected, expected_labels = clicks.next_clicks(predictions, targets)
        assert labels.tolist() == expected_labels.tolist()
        for row in np.flatnonzero(expected_labels >= 0):
            errors = targets & ~predictions if labels[row] else predictions & ~targets
            parts = ndimage.label(errors[row], EIGHT_CONNECTED)[0]
            (r, c), (scipy_r, scipy_c) = points[row].long().tolist(), expected[row].astype(int)
            assert parts[r, c] == parts[scipy_r, scipy_c] > 0
            depth = depth_of(parts == parts[r, c])
            assert depth[r, c] == depth.max()  # where SciPy looks at a coarser grid, too
            if size <= 96:
                assert depth[r, c] == depth[scipy_r, scipy_c]
                assert np.hypot(r - scipy_r, c - scipy_c) < 2 or kind != "blobs"  # centroids that lie between pixels
    assert (points[labels < 0] == -1).all()


def test_jittered_clicks_spread_over_the_inner_part() -> None:
    rows, columns = np.mgrid[:64, :64]
    target = torch.from_numpy((rows - 30) ** 2 + (columns - 30) ** 2 <= 400).expand(200, -1, -1)
    chance = torch.rand(200, generator=torch.Generator().manual_seed(0))
    points, labels = next_clicks(torch.zeros_like(target), target, chance)
    distance = (points - 30).norm(dim=1)
    assert (labels == 1).all() and distance.max() <= 11
    assert (points.mean(0) - 30).abs().max() < 1 and points.std(0).min() > 3.5  # 4.7 if all are equally likely
    assert torch.equal(points, next_clicks(torch.zeros_like(target), target, chance)[0])


def test_each_pixel_of_a_mask_is_drawn_equally_often() -> None:
    mask = torch.tensor([[False, True, True], [True, False, True]])[None]
    assert drawn_pixel(mask, torch.tensor([[0.0, 0.24, 0.26, 0.5, 0.75, 0.9999999]])).tolist() == [[1, 1, 2, 3, 5, 5]]
    assert drawn_pixel(~mask & mask, torch.tensor([[0.7]])).tolist() == [[0]]


@given(arrays(bool, (9, 13)), arrays(bool, (9, 13)), st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_a_click_lies_in_a_largest_error(prediction: np.ndarray, target: np.ndarray, chance: float) -> None:
    points, labels = next_clicks(*(torch.from_numpy(m)[None] for m in (prediction, target)), torch.tensor([chance]))
    errors = {0: prediction & ~target, 1: target & ~prediction}
    if labels[0] < 0:
        assert not any(error.any() for error in errors.values())
        return
    parts = {label: ndimage.label(error, EIGHT_CONNECTED)[0] for label, error in errors.items()}
    largest = max(np.bincount(part.ravel())[1:].max(initial=0) for part in parts.values())
    clicked = parts[int(labels[0])]
    value = clicked[tuple(points[0].long().tolist())]
    assert value > 0 and (clicked == value).sum() == largest


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(N, H, W\) of one shape, not \(2, 4, 5\) and \(2, 5, 4\)"):
        next_clicks(torch.zeros(2, 4, 5).bool(), torch.zeros(2, 5, 4).bool())


@pytest.mark.parametrize("kind", KINDS)
def test_strokes_are_one_piece_inside_the_largest_part(kind: str) -> None:
    regions = torch.from_numpy(KINDS[kind](96))
    chance = torch.rand(len(regions), STROKE_CHANCES, generator=torch.Generator().manual_seed(0))
    largest, sizes = largest_component(regions)
    for stroke, part, size in zip(strokes(regions, chance), largest, sizes, strict=True):
        assert stroke.any() == (size > 0) and not (stroke & ~part).any()
        assert ndimage.label(stroke, EIGHT_CONNECTED)[1] == int(size > 0)
        if kind == "blobs":
            assert stroke.sum() < 0.5 * size


def test_strokes_are_as_long_and_wide_as_scipys() -> None:
    regions = blobs(200, 96, 5)
    chance = torch.rand(200, STROKE_CHANCES, generator=torch.Generator().manual_seed(1))
    found = strokes(torch.from_numpy(regions), chance).numpy()
    rng = np.random.default_rng(0)
    expected = np.stack([clicks.simulate_scribble(region, rng) for region in regions])
    pixels, extents = (
        [measure(masks) for masks in (found, expected)]
        for measure in (
            lambda masks: masks.sum((1, 2)).mean(),
            lambda masks: np.mean([np.ptp(np.argwhere(mask), axis=0).max() for mask in masks]),
        )
    )
    assert pixels[0] == pytest.approx(pixels[1], rel=0.2) and extents[0] == pytest.approx(extents[1], rel=0.2)


def test_strokes_follow_the_longer_axis() -> None:
    region = torch.zeros(20, 40, 200, dtype=torch.bool)
    region[:, 10:30, 10:190] = True
    chance = torch.rand(20, STROKE_CHANCES, generator=torch.Generator().manual_seed(0))
    extents = [np.ptp(np.argwhere(stroke.numpy()), axis=0) for stroke in strokes(region, chance)]
    assert np.median(extents, axis=0)[1] > 3 * np.median(extents, axis=0)[0]


@given(arrays(bool, (11, 14)).filter(np.any), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_stroke_in_any_region_is_legal(region: np.ndarray, seed: int) -> None:
    chance = torch.rand(1, STROKE_CHANCES, generator=torch.Generator().manual_seed(seed))
    stroke = strokes(torch.from_numpy(region)[None], chance)[0].numpy()
    assert stroke.any() and not (stroke & ~region).any() and ndimage.label(stroke, EIGHT_CONNECTED)[1] == 1


@pytest.mark.parametrize("kind", ["blobs", "lines", "special"])
def test_points_of_strokes_are_scipys(kind: str) -> None:
    drawn = KINDS[kind](40)
    points, found = spread_points(torch.from_numpy(drawn))
    for row, stroke in enumerate(drawn):
        expected, _ = scribble_points(stroke.astype(np.int8))
        assert found[row].sum() == len(expected)
        chosen = points[row][found[row]].numpy()
        assert stroke[tuple(chosen.astype(int).T)].all()
        gaps = [_smallest_gap(those) for those in (chosen, expected)]
        assert gaps[0] == pytest.approx(gaps[1], rel=0.5)  # of pixels that are equally far, either may be taken


def _smallest_gap(points: np.ndarray) -> float:
    apart = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    return float(apart[~np.eye(len(points), dtype=bool)].min(initial=1e3))


def test_scribbles_have_points_of_their_sign_and_negative_ones_half_of_the_time() -> None:
    masks = torch.zeros(60, 64, 64, dtype=torch.bool)
    masks[:, 20:40, 24:44] = True
    masks[0] = False
    masks[1] = True
    chance = torch.rand(60, SCRIBBLE_CHANCES, generator=torch.Generator().manual_seed(0))
    drawn, points, labels = scribbles(masks, chance)
    positive, negative = drawn.bool().unbind(1)
    assert not (positive & ~masks).any() and not (negative & masks).any()
    assert positive.flatten(1).any(1).tolist() == [False] + [True] * 59
    assert 18 < negative.flatten(1).any(1).sum() < 42 and not negative[:2].any()
    near = ndimage.distance_transform_edt(~masks[2].numpy())
    assert near[negative.any(0)].max() <= 8 and near[negative.any(0)].min() > 1
    assert points.shape == (60, 2 * SCRIBBLE_POINTS, 2) and (labels[0] == -1).all()
    assert set(labels[:, :SCRIBBLE_POINTS].unique().tolist()) == {1, -1}
    assert set(labels[:, SCRIBBLE_POINTS:].unique().tolist()) == {0, -1}
    for row in range(60):
        for label, where in ((1, positive[row]), (0, negative[row])):
            chosen = points[row][labels[row] == label].long()
            assert where[chosen[:, 0], chosen[:, 1]].all() and bool(len(chosen)) == bool(where.any())


def test_nothing_waits_for_the_device_and_the_graph_has_no_break() -> None:
    masks, others = (torch.from_numpy(blobs(3, 32, seed)) for seed in (0, 1))
    chance = torch.rand(3, SCRIBBLE_CHANCES, generator=torch.Generator().manual_seed(0))
    with Unsynchronised():
        found = *next_clicks(masks, others, chance[:, 0]), *scribbles(masks, chance)
        next_clicks(masks, others)
    click, scribble = (torch.compile(f, fullgraph=True, backend="eager") for f in (next_clicks, scribbles))
    for one, other in zip((*click(masks, others, chance[:, 0]), *scribble(masks, chance)), found, strict=True):
        assert torch.equal(one, other)
