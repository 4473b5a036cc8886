# SPDX-License-Identifier: Apache-2.0
"""Bounding boxes and components, against SciPy's own slower functions where it has them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED, bounding_box, components_touching, largest_component


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 0.8)


@pytest.mark.parametrize("shape", [(9, 31), (5, 12, 17)])
@pytest.mark.parametrize("seed", range(5))
def test_a_box_is_that_of_find_objects(shape: tuple[int, ...], seed: int) -> None:
    mask = blobs(shape, seed)
    assert bounding_box(mask) == ndimage.find_objects(mask.astype(np.uint8))[0]


def test_a_margin_ends_at_the_border_and_an_empty_mask_has_no_box() -> None:
    mask = np.zeros((8, 10), bool)
    mask[1:3, 6:9] = True
    assert bounding_box(mask, margin=2) == (slice(0, 5), slice(4, 10))
    assert bounding_box(np.zeros((3, 4), bool)) is None


@pytest.mark.parametrize("structure", [None, EIGHT_CONNECTED])
@pytest.mark.parametrize("seed", range(5))
def test_components_at_seeds_are_those_of_binary_propagation(structure: np.ndarray | None, seed: int) -> None:
    mask, seeds = blobs((40, 40), seed), blobs((40, 40), 100 + seed)
    expected = ndimage.binary_propagation(seeds & mask, structure, mask=mask)
    np.testing.assert_array_equal(components_touching(mask, seeds, structure), expected)
    assert not components_touching(mask, np.zeros_like(mask), structure).any()


def test_the_largest_component_is_the_first_of_equal_ones_and_corners_connect_on_request() -> None:
    mask = np.zeros((6, 9), bool)
    mask[0, :3] = mask[2, 4:7] = True
    mask[4, 0] = mask[5, 1] = mask[4, 2] = mask[5, 3] = True
    np.testing.assert_array_equal(np.argwhere(largest_component(mask)), [[0, 0], [0, 1], [0, 2]])
    assert largest_component(mask, EIGHT_CONNECTED)[4:].sum() == 4
    assert not largest_component(np.zeros((2, 3), bool)).any()
