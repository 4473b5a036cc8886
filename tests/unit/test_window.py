# SPDX-License-Identifier: Apache-2.0
"""Windows: where they lie, what they hold, and the way from the image into them and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kprism_model.data.windows import crop_to_windows, random_windows
from kprism_model.queries import Click
from kprism_model.volumes.slice_features import SliceQuery
from kprism_model.window import Box, Window, WindowRules, choose_window, window_around

RULES = WindowRules()
NATIVE = 64


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    """An image's size, elongated ones too, and a box in it."""
    size = draw(st.tuples(st.integers(1, 400), st.integers(1, 400)))
    top, left = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
    return size, Box(top, left, draw(st.integers(top, size[0] - 1)), draw(st.integers(left, size[1] - 1)))


def mask_of(size: tuple[int, int], box: Box) -> np.ndarray:
    mask = np.zeros(size, np.float32)
    mask[box.top : box.bottom + 1, box.left : box.right + 1] = 1
    return mask


@settings(max_examples=300, deadline=None)
@given(boxes())
def test_a_window_holds_its_box_with_free_space_and_lies_in_the_image(drawn: tuple[tuple[int, int], Box]) -> None:
    size, box = drawn
    window = window_around(size, NATIVE, [box], RULES)
    assert window.holds(box)
    assert window.top >= 0 and window.left >= 0
    assert window.top + window.rows <= size[0] and window.left + window.columns <= size[1]
    if not window.is_whole:
        assert window.longest <= np.ceil(max(size) / RULES.minimum_magnification)
        assert window.longest * RULES.maximum_enlargement >= NATIVE
        assert window.longest >= box.longest * (1 + 2 * RULES.margin)
        assert not window.cuts(window.crop(mask_of(size, box)) > 0)


@settings(max_examples=200, deadline=None)
@given(boxes(), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_points_and_masks_come_back_as_they_were(drawn: tuple[tuple[int, int], Box], row: float, column: float) -> None:
    size, box = drawn
    window = window_around(size, NATIVE, [box], RULES)
    click = Click(box.top + row, box.right + column, True)
    back = window.to_image(window.to_window(click))
    assert (back.row, back.column) == pytest.approx((click.row, click.column))
    mask = mask_of(size, box)
    assert np.array_equal(window.paste(window.crop(mask)), mask)
    image = np.random.default_rng(0).random(size)
    assert np.array_equal(window.paste(window.crop(image), image), image)
    inside = window.to_window(Click(box.top, box.left, True))
    assert window.crop(image)[int(inside.row), int(inside.column)] == image[box.top, box.left]


@settings(max_examples=100, deadline=None)
@given(boxes())
def test_sides_come_from_a_ladder_and_corners_from_a_grid(drawn: tuple[tuple[int, int], Box]) -> None:
    size, box = drawn
    window = window_around(size, NATIVE, [box], RULES)
    if window.is_whole:
        return
    assert window.longest in RULES.sides(size, NATIVE)
    step = max(1, window.longest // RULES.grid)
    for corner, side, whole in ((window.top, window.rows, size[0]), (window.left, window.columns, size[1])):
        assert corner % step == 0 or corner == whole - side


def test_the_ladder_goes_from_the_least_to_the_largest_magnification() -> None:
    rules = WindowRules(minimum_magnification=1.6, maximum_magnification=6.4, step=2**0.5, maximum_enlargement=3)
    assert rules.sides((640, 400), 64) == [100, 141, 200, 283, 400]
    assert rules.sides((640, 400), 480) == [200, 283, 400]
    assert rules.sides((40, 50), 192) == []


def test_a_mask_that_grows_a_little_keeps_its_window() -> None:
    before = window_around((512, 512), NATIVE, [Box(200, 200, 240, 250)], RULES)
    after = window_around((512, 512), NATIVE, [Box(199, 201, 243, 251)], RULES)
    assert before == after and before.longest < 200


def test_what_is_large_or_has_few_pixels_gets_no_window() -> None:
    assert window_around((512, 512), 192, [Box(50, 60, 350, 360)], RULES).is_whole
    assert window_around((51, 35), 192, [Box(20, 20, 22, 22)], RULES).is_whole
    assert not window_around((51, 35), 32, [Box(20, 20, 22, 22)], RULES).is_whole
    one_pixel = window_around((4000, 3000), 192, [Box(3999, 0, 3999, 0)], RULES)
    assert one_pixel.longest == min(RULES.sides((4000, 3000), 192))
    assert (one_pixel.top + one_pixel.rows, one_pixel.left) == (4000, 0)


def test_a_long_thin_image_is_cut_along_its_long_side_only() -> None:
    window = window_around((30, 900), NATIVE, [Box(10, 500, 15, 560)], RULES)
    assert (window.top, window.rows) == (0, 30)
    assert 500 - window.left > 20 and window.left + window.columns - 560 > 20
    assert window.columns < 300


def test_only_a_second_look_is_in_a_window() -> None:
    size, mask = (200, 200), mask_of((200, 200), Box(50, 50, 70, 70))
    first, second = Click(55, 55, True), Click(150, 60, False)
    strokes = np.zeros(size, np.int8)
    strokes[52, 50:60] = 1

    def window(**prompts: object) -> Window:
        return choose_window(size, NATIVE, SliceQuery(0, **prompts), RULES)  # type: ignore[arg-type]

    assert window(clicks=(first,)).is_whole
    assert window(scribbles=strokes).is_whole
    assert window(class_name="a", previous_mask=mask).is_whole
    assert window(clicks=(first,), previous_mask=np.zeros(size)).is_whole
    assert not window(clicks=(first,), previous_mask=mask).is_whole
    assert not window(scribbles=strokes, previous_mask=mask).is_whole
    assert window(clicks=(first, Click(52, 50, True))).longest >= 200 / RULES.maximum_without_mask
    both = window(clicks=(first, second), previous_mask=mask)
    assert both.is_whole or both.holds(Box(50, 50, 150, 70))
    assert window(clicks=(Click(-0.5, 199.5, True),), previous_mask=mask).holds(Box(0, 50, 70, 199))


def test_a_mask_at_the_border_of_the_image_is_not_cut() -> None:
    window = Window(0, 40, 50, 60, (100, 100))
    for row, column, cut in ((0, 30, False), (49, 30, True), (20, 0, True), (20, 59, False), (20, 30, False)):
        mask = np.zeros((50, 60), bool)
        mask[row, column] = True
        assert window.cuts(mask) == cut


def test_arrays_of_another_size_and_impossible_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="100 x 100 pixels, got shape"):
        Window(0, 0, 10, 10, (100, 100)).crop(np.zeros((100, 90)))
    for changes in ({"minimum_magnification": 1.0}, {"step": 1.0}, {"margin": -0.1}, {"maximum_magnification": 1.1}):
        with pytest.raises(ValueError, match="expected margin"):
            replace(RULES, **changes)
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        replace(RULES, grid=0)


def test_random_windows_hold_the_masks_and_differ_as_the_seed_does() -> None:
    masks = torch.zeros(4, 1, 256, 192)
    masks[0, 0, 100:120, 80:110] = 1
    masks[1, 0, :6, 180:] = 1
    masks[3, 0, 10:250, 5:180] = 1
    previous = np.zeros((4, 1, 256, 192), np.float32)
    previous[0, 0, 110:135, 70:90] = 0.7
    drawn = [random_windows(masks, previous, NATIVE, np.random.default_rng(seed)) for seed in range(40)]
    assert drawn[3] == random_windows(masks, previous, NATIVE, np.random.default_rng(3))
    for first, second, empty, large in drawn:
        assert empty.is_whole and large.is_whole
        assert first.holds(Box(100, 70, 134, 109)) and second.holds(Box(0, 180, 5, 191))
        for window in (first, second):
            assert 0 <= window.top <= 256 - window.rows and 0 <= window.left <= 192 - window.columns
    assert len({windows[0] for windows in drawn}) > 30
    sides = [windows[0].longest for windows in drawn]
    nominal = window_around((256, 192), NATIVE, [Box(100, 70, 134, 109)], RULES).longest
    assert min(sides) < nominal < max(sides)


def test_random_windows_refuse_masks_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\), got \(2, 8, 8\)"):
        random_windows(np.zeros((2, 8, 8)), None, NATIVE, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"got \(2, 1, 8, 8\) and \(1, 1, 8, 8\)"):
        random_windows(np.zeros((2, 1, 8, 8)), np.zeros((1, 1, 8, 8)), NATIVE, np.random.default_rng(0))


def test_training_images_are_enlarged_to_what_their_windows_show() -> None:
    """The canvas of a window holds its pixels four times as large, and knows what of it is image."""
    images = torch.arange(64, dtype=torch.uint8).repeat(64, 1).expand(2, 3, 64, 64).clone()
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[:, :, 20:24, 10:14] = True
    content = torch.tensor([[64, 64], [28, 64]])
    windows = [Window.whole((64, 64)), Window(16, 8, 16, 16, (64, 64))]
    seen, marked, shown = crop_to_windows(images, masks, content, windows)
    assert torch.equal(seen[0], images[0]) and torch.equal(marked[0], masks[0])
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[16:32, 8:24] = True
    assert (marked[1, 0] ^ expected).sum() <= 4  # corners are rounded off
    assert seen.dtype == torch.uint8 and int(seen[1].min()) == 8 and int(seen[1].max()) == 23
    assert shown.tolist() == [[64, 64], [48, 64]]  # twelve rows of the window are image
