# SPDX-License-Identifier: Apache-2.0
"""Maps that keep only the slices that are not empty say the same as arrays, whatever the storage order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kprism_model.orientation import PLANES, SliceOrientation
from kprism_model.volumes.slice_map import SliceMap, filled_indices

ORDERS = [
    np.diag([*signs, 1.0])[[*axes, 3]]
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -2.0), repeat=3)
]
SHAPES = [(7, 5, 4), (1, 6, 5), (6, 1, 1), (3, 3, 9)]


def sparse(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A map with values on some planes only."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8, order="F")
    for _ in range(3):
        labels[tuple(int(rng.integers(side)) for side in shape)] = rng.integers(1, 250)
    return labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plane", PLANES)
def test_a_map_is_the_array_that_it_was_made_of(shape: tuple[int, int, int], plane: str) -> None:
    labels = sparse(shape)
    for affine in ORDERS:
        orientation = SliceOrientation.of(affine, shape, plane)
        own = SliceMap.of(labels, orientation)
        np.testing.assert_array_equal(own.volume(), labels)
        slices = orientation.to_slices(labels)
        assert own.filled == [number for number in range(len(slices)) if slices[number].any()]
        assert set(own.slices) == set(own.filled)
        for number in range(len(slices)):
            np.testing.assert_array_equal(own.on(number), slices[number])
        voxel = tuple(int(index) for index in np.argwhere(labels)[0])
        assert own.at(voxel) == labels[voxel]
        assert own.at((0, 0, 0)) == labels[0, 0, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_keeps_every_voxel(shape: tuple[int, int, int]) -> None:
    labels = sparse(shape, 1)
    for one, other in itertools.product(ORDERS[::5], ORDERS[::7]):
        for before, after in itertools.product(PLANES, PLANES):
            own = SliceMap.of(labels, SliceOrientation.of(one, shape, before))
            turned = own.turned(SliceOrientation.of(other, shape, after))
            np.testing.assert_array_equal(turned.volume(), labels)


def test_changes_make_new_maps() -> None:
    orientation = SliceOrientation.of(np.eye(4), (4, 3, 2), "axial")
    own = SliceMap.of(sparse((4, 3, 2)), orientation)
    before = own.volume()
    masks = own.mapped(lambda values: values > 0, np.bool_)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks.volume(), before > 0)
    other = own.with_slices({1: np.full(own.size, 9, np.uint8)})
    assert (other.on(1) == 9).all()
    np.testing.assert_array_equal(own.volume(), before)
    assert SliceMap(orientation, np.dtype(np.uint8)).nbytes == 0
    with pytest.raises(ValueError, match=r"of shape \(4, 3, 3\)"):
        own.turned(SliceOrientation.of(np.eye(4), (4, 3, 3)))


def test_filled_indices_of_any_memory_order() -> None:
    for order in ("C", "F"):
        labels = sparse((6, 5, 4), 2).copy(order=order)
        for axis, filled in enumerate(filled_indices(labels)):
            others = tuple(other for other in range(3) if other != axis)
            np.testing.assert_array_equal(filled, labels.any(axis=others))
