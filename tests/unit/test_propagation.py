# SPDX-License-Identifier: Apache-2.0
"""Shapes, clean-up, overlap rules and the order of prompts, on masks drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kprism_model.orientation import SliceOrientation
from kprism_model.queries import Click
from kprism_model.volumes.cleanup import fill_holes, keep_largest_component
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prediction import StructureMask, resolve_overlaps
from kprism_model.volumes.prompt_history import PromptHistory
from kprism_model.volumes.prompts import PromptsBySlice
from kprism_model.volumes.shapes import confine, interpolate_masks
from kprism_model.volumes.slice_map import SliceMap

SIZE = (40, 50)


def box(top: int, left: int, rows: int, columns: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def test_only_what_grows_out_of_the_mask_is_kept() -> None:
    probability = np.full(SIZE, 0.2, np.float32)
    probability[8:16, 10:30] = 0.9  # grows out of the mask, too far to the right
    probability[25:30, 10:15] = 0.9  # elsewhere
    kept = confine(probability, box(10, 10, 4, 10), reach=3)
    assert (kept >= 0.5).sum() == (kept[8:16, 10:23] >= 0.5).sum() > 8 * 12
    assert kept[12, 22] == np.float32(0.9) and kept[12, 23] == 0
    assert not kept[20:].any()


def test_a_part_that_is_near_but_does_not_touch_is_dropped() -> None:
    probability = np.where(box(10, 10, 4, 4) | box(10, 16, 4, 4), 0.8, 0.0).astype(np.float32)
    kept = confine(probability, box(10, 10, 4, 4), reach=5)
    np.testing.assert_array_equal(kept >= 0.5, box(10, 10, 4, 4))


def test_shapes_between_two_masks_move_and_grow_steadily() -> None:
    one, other = box(5, 5, 6, 6), box(25, 31, 12, 12)
    shapes = interpolate_masks(one, other, np.array([0.0, 0.5, 1.0])) > 0
    np.testing.assert_array_equal(shapes[0], one)
    np.testing.assert_array_equal(shapes[2], other)
    middle = np.argwhere(shapes[1])
    assert middle.mean(axis=0) == pytest.approx([19, 22], abs=0.6)
    assert 7 <= np.ptp(middle[:, 0]) + 1 <= 11


def test_shapes_between_thin_masks_are_never_empty() -> None:
    shapes = interpolate_masks(box(5, 5, 1, 20), box(20, 40, 15, 1), np.linspace(0.1, 0.9, 9))
    assert (shapes.sum(axis=(1, 2)) > 0).all()


def test_the_largest_part_and_clicked_parts_stay() -> None:
    mask = np.zeros((6, 20, 20), bool)
    mask[1:4, 2:8, 2:8], mask[4:6, 15:18, 15:18], mask[0, 0, 19] = True, True, True
    expected = mask.copy()
    expected[0, 0, 19] = expected[4:6, 15:18, 15:18] = False
    np.testing.assert_array_equal(keep_largest_component(mask), expected)
    np.testing.assert_array_equal(keep_largest_component(mask, [(0, 0, 19)]).sum(), expected.sum() + 1)
    np.testing.assert_array_equal(keep_largest_component(mask, [(5, 5, 5)]), expected)
    assert not keep_largest_component(np.zeros((2, 3, 4), bool)).any()


def test_only_cavities_closed_on_all_sides_are_filled() -> None:
    mask = np.ones((5, 7, 7), bool)
    mask[2, 3, 3] = False
    mask[:, 1, 1] = False  # a channel through all slices
    filled = fill_holes(mask)
    assert filled[2, 3, 3] and not filled[:, 1, 1].any()
    assert not fill_holes(np.zeros((2, 3, 4), bool)).any()


def test_a_patch_keeps_the_mask_and_nothing_negligible() -> None:
    probability = np.zeros(SIZE, np.float32)
    probability[10:13, 20:24] = 0.5
    probability[9, 20] = 0.005
    patch = Patch.of(probability)
    assert patch.corner == (10, 20) and patch.values.shape == (3, 4)
    np.testing.assert_array_equal(patch.mask(), box(10, 20, 3, 4))
    assert patch.probability()[9, 20] == 0 and patch.any
    assert not Patch.empty(SIZE).any and not Patch.empty(SIZE).mask().any()


def structure(patches: dict[int, np.ndarray], prompted: tuple[int, ...], **more: object) -> StructureMask:
    orientation = SliceOrientation.of(np.diag([1, 1, 3, 1]), (SIZE[1], SIZE[0], 3))
    slices = {number: Patch.of(probability.astype(np.float32)) for number, probability in patches.items()}
    before = SliceMap(orientation, np.dtype(bool), dict(enumerate(more.get("before", ()))))
    return StructureMask(orientation, slices, prompted, {}, before, more.get("clicked", ()))


def test_overlaps_go_by_click_then_prompt_then_probability_then_order() -> None:
    first = structure({0: 0.6 * box(5, 5, 5, 5), 1: 0.9 * box(5, 5, 5, 5)}, (0,))
    second = structure({0: 0.9 * box(5, 5, 5, 9), 1: 0.9 * box(5, 5, 5, 5)}, ())
    third = structure(
        {0: 0.7 * box(5, 5, 2, 2), 1: 0.95 * box(5, 5, 1, 5)}, (0,), clicked=((0, Click(5.0, 5.0, True)),)
    )
    apart = resolve_overlaps({"first": first, "second": second, "third": third})
    on = {name: [mask.on(number) for number in (0, 1)] for name, mask in apart.items()}
    np.testing.assert_array_equal(on["third"][0], box(5, 5, 2, 2))  # prompted like the first, more probable
    np.testing.assert_array_equal(on["first"][0], box(5, 5, 5, 5) & ~box(5, 5, 2, 2))  # prompted
    np.testing.assert_array_equal(on["second"][0], box(5, 10, 5, 4))  # more probable than the first, but followed
    np.testing.assert_array_equal(on["third"][1], box(5, 5, 1, 5))  # the most probable
    np.testing.assert_array_equal(on["first"][1], box(6, 5, 4, 5))  # named before the second
    assert not on["second"][1].any()


def test_a_mask_from_before_counts_one_half_and_yields_where_another_is_asked_for() -> None:
    before = np.zeros((3, *SIZE), bool)
    before[:, 5:10, 5:10] = True
    old = structure({}, (), before=before)
    new = structure({1: 0.6 * box(5, 5, 2, 5) + 0.4 * box(7, 5, 3, 5)}, ())
    apart = resolve_overlaps({"old": old, "new": new})
    np.testing.assert_array_equal(apart["old"].on(1), box(7, 5, 3, 5))
    np.testing.assert_array_equal(apart["old"].on(0), before[0])


def task(*clicks: tuple[int, bool], given: tuple[int, ...] = ()) -> PromptsBySlice:
    made = tuple((number, Click(5.0, 6.0, positive)) for number, positive in clicks)
    return PromptsBySlice(None, made, {}, {number: box(5, 5, 4, 4) for number in given}, None)


def test_a_first_click_starts_from_what_the_clicks_before_it_led_to() -> None:
    prompted_slices = PromptHistory(task((10, True), (20, True), (10, False), (15, True)), (0, 30)).prompted_slices()
    ten, fifteen, twenty = prompted_slices
    assert [prompted_slice.number for prompted_slice in prompted_slices] == [10, 15, 20]
    assert ten.slice_range is None and len(ten.prompts.clicks) == 2
    assert twenty.slice_range is not None and twenty.slice_range.before is not None
    assert len(twenty.slice_range.before.prompts.clicks) == 1  # slice 10 as it was when slice 20 was first clicked
    assert fifteen.slice_range is not None and (fifteen.slice_range.first, fifteen.slice_range.last) == (11, 19)
    assert fifteen.slice_range.before is not None and fifteen.slice_range.before.key == ten.key


def test_a_new_click_changes_the_keys_of_its_own_slice_and_of_the_stretches_beside_it() -> None:
    before = PromptHistory(task((5, True), (10, True), (20, True)), (0, 30))
    after = PromptHistory(task((5, True), (10, True), (20, True), (20, False)), (0, 30))
    assert [a.key == b.key for a, b in zip(before.prompted_slices(), after.prompted_slices(), strict=True)] == [
        True,
        True,
        False,
    ]
    kept = [a.key == b.key for a, b in zip(before.slice_ranges(), after.slice_ranges(), strict=True)]
    assert kept == [True, True, False, False]


def test_limits_cut_the_ends_and_leave_out_what_lies_beyond() -> None:
    history = PromptHistory(task((10, True), (20, True)), (15, 25))
    slice_ranges = [(slice_range.first, slice_range.last) for slice_range in history.slice_ranges()]
    assert slice_ranges == [(11, 19), (21, 25)]
    assert [list(history.within_limits(slice_range)) for slice_range in history.slice_ranges()] == [
        [15, 16, 17, 18, 19],
        [21, 22, 23, 24, 25],
    ]
    assert PromptHistory(task((10, True), (20, True)), None).slice_ranges() == []


def test_given_slices_count_as_made_before_all_clicks() -> None:
    [given, clicked] = PromptHistory(task((12, False), given=(8,)), (0, 30)).prompted_slices()
    assert given.number == 8 and given.initial_mask is not None and not given.prompts.any
    assert clicked.slice_range is not None and clicked.slice_range.before is not None
    assert clicked.slice_range.before.key == given.key
