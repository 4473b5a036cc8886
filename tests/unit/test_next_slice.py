# SPDX-License-Identifier: Apache-2.0
"""The slice to look at next, from masks with known probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from kprism_model.orientation import SliceOrientation
from kprism_model.volumes.next_slice import expected_wrong_pixels, next_slice, uncertainty
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prediction import StructureMask

SIZE = (20, 20)


def square(probability: float) -> Patch:
    """Ten by ten pixels of one probability."""
    values = np.zeros(SIZE, np.float32)
    values[5:15, 5:15] = probability
    return Patch.of(values)


def mask_of(slices: Mapping[int, float], prompted: tuple[int, ...]) -> StructureMask:
    """A mask of squares by slice."""
    orientation = SliceOrientation.of(np.diag([1.0, 1.0, 4.0, 1.0]), (*SIZE, 9))
    patches = {number: square(probability) for number, probability in slices.items()}
    return StructureMask(orientation, patches, prompted, dict.fromkeys(slices, 1.0), None, ())


def test_the_score_counts_the_pixels_that_are_expected_to_be_wrong() -> None:
    assert expected_wrong_pixels(square(0.75)) == pytest.approx(25)
    assert expected_wrong_pixels(square(0.25)) == pytest.approx(25)
    assert expected_wrong_pixels(square(1.0)) == 0
    assert expected_wrong_pixels(Patch.empty(SIZE)) == 0


def test_the_least_certain_slice_is_proposed_but_never_a_prompted_one() -> None:
    mask = mask_of({2: 0.75, 3: 0.875, 4: 0.5, 5: 0.625, 6: 0.75}, prompted=(4,))
    assert next_slice(mask) == 5
    assert uncertainty(mask) == pytest.approx({2: 25 * 1.2, 3: 12.5 * 1.1, 5: 37.5 * 1.1, 6: 25 * 1.2})


def test_of_slices_that_are_as_certain_the_one_farthest_from_prompts_is_proposed() -> None:
    assert next_slice(mask_of({3: 0.75, 4: 1.0, 5: 0.75, 6: 0.75}, prompted=(4,))) == 6


def test_a_rejected_slice_with_probabilities_below_one_half_can_be_proposed() -> None:
    assert next_slice(mask_of({4: 1.0, 5: 0.875, 6: 0.375}, prompted=(4,))) == 6


@pytest.mark.parametrize("slices", [{4: 0.5}, {4: 1.0, 5: 0.97, 6: 1.0}, {4: 1.0, 5: 0.0}])
def test_nothing_is_proposed_where_all_is_certain(slices: Mapping[int, float]) -> None:
    assert next_slice(mask_of(slices, prompted=(4,))) is None
