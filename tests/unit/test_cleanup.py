# SPDX-License-Identifier: Apache-2.0
"""What scribbles say outright of a mask."""

from __future__ import annotations

import numpy as np

from kprism_model.volumes.cleanup import apply_scribbles

GRID = (9, 12)


def filled(rows: slice, columns: slice, value: int = 1) -> np.ndarray:
    plane = np.zeros(GRID, np.int8)
    plane[rows, columns] = value
    return plane


def test_what_lies_beyond_a_frame_goes_and_what_was_drawn_is_so() -> None:
    mask = filled(slice(2, 7), slice(0, 8)) > 0
    scribbles = filled(slice(0, 9), slice(3, 4), -1)
    scribbles[4, 10] = 1
    found = apply_scribbles(mask, scribbles, filled(slice(3, 6), slice(5, 7)) > 0)
    assert not found[:, :4].any()  # the frame, and the part beyond it
    assert found[2:7, 4:8].all() and found[4, 10] and found.sum() == 21


def test_a_part_that_was_there_before_stays_on_both_sides() -> None:
    mask = filled(slice(2, 7), slice(0, 8)) > 0
    found = apply_scribbles(mask, filled(slice(0, 9), slice(3, 4), -1), mask)
    np.testing.assert_array_equal(found, mask & (filled(slice(0, 9), slice(3, 4)) == 0))


def test_a_part_that_no_scribble_cut_off_stays() -> None:
    """A second lung is no leak: the scribble touches it from outside and cuts nothing."""
    mask = (filled(slice(2, 7), slice(0, 3)) | filled(slice(2, 7), slice(6, 9))) > 0
    scribbles = filled(slice(2, 7), slice(3, 4), -1)
    scribbles[4, 7] = 1
    np.testing.assert_array_equal(apply_scribbles(mask, scribbles), mask)
