# SPDX-License-Identifier: Apache-2.0
"""Volumes become the same slices however they were stored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from kprism_model.orientation import SliceOrientation

ALL_48 = [
    np.array(list(zip(axes, flips, strict=True)), dtype=float)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SHAPE = (5, 6, 7)


def stored_as(change: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """One RAS volume (x, y, z), stored with permuted and flipped axes, and its affine."""
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    affine = np.diag([*spacing, 1.0])
    return apply_orientation(volume, change), affine @ inv_ornt_aff(change, SHAPE)


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1, 1, 1), "axial"), ((1, 1, 5), "axial"), ((0.9, 4, 0.9), "coronal"), ((3, 0.5, 0.5), "sagittal")],
)
def test_all_48_storage_orders_give_one_stack(spacing: tuple[float, float, float], plane: str) -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    expected = {
        "axial": volume.transpose(2, 1, 0)[:, ::-1, ::-1],
        "coronal": volume.transpose(1, 2, 0)[::-1, ::-1, ::-1],
        "sagittal": volume.transpose(0, 2, 1)[::-1, ::-1, ::-1],
    }[plane]
    for change in ALL_48:
        stored, affine = stored_as(change, spacing)
        orientation = SliceOrientation.of(affine, stored.shape)
        assert orientation.plane == plane
        np.testing.assert_array_equal(orientation.to_slices(stored), expected)
        np.testing.assert_array_equal(orientation.to_volume(expected), stored)


def test_points_move_with_their_voxels() -> None:
    for change in ALL_48:
        stored, affine = stored_as(change, (1.0, 2.0, 3.0))
        orientation = SliceOrientation.of(affine, stored.shape)
        voxels = np.argwhere(stored >= 0)
        moved = orientation.points_to_slices(voxels)
        slices = orientation.to_slices(stored)
        np.testing.assert_array_equal(slices[tuple(moved.astype(int).T)], stored[tuple(voxels.T)])
        np.testing.assert_array_equal(orientation.points_to_volume(moved), voxels)
        assert orientation.spacing == pytest.approx((3.0, 2.0, 1.0))


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_an_unusable_affine_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match="affine must be 4 x 4, finite and invertible"):
        SliceOrientation.of(affine, (2, 3, 4))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"three axes, got shape \(2, 3\)"):
        SliceOrientation.of(np.eye(4), (2, 3))
    orientation = SliceOrientation.of(np.eye(4), (2, 3, 4))
    with pytest.raises(ValueError, match=r"volume has shape \(2, 2, 2\), expected \(2, 3, 4\)"):
        orientation.to_slices(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"stack of slices has shape \(2, 3, 4\), expected \(4, 3, 2\)"):
        orientation.to_volume(np.zeros((2, 3, 4)))


def test_the_plane_can_be_chosen() -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    orientation = SliceOrientation.of(np.diag([1.0, 2.0, 3.0, 1.0]), SHAPE, "sagittal")
    assert orientation.plane == "sagittal" and orientation.spacing == pytest.approx((1.0, 3.0, 2.0))
    np.testing.assert_array_equal(orientation.to_slices(volume), volume.transpose(0, 2, 1)[::-1, ::-1, ::-1])
    with pytest.raises(ValueError, match="the plane is 'axiel'; expected one of axial, coronal, sagittal"):
        SliceOrientation.of(np.eye(4), SHAPE, "axiel")


@pytest.mark.parametrize(
    ("shape", "plane"),
    [
        ((40, 50, 40), "axial"),
        ((40, 13, 40), "coronal"),  # less than a third of the others
        ((40, 14, 40), "axial"),
        ((13, 13, 40), "axial"),  # no axis has less than a third of both others
        ((1, 50, 40), "sagittal"),
        ((50, 1, 40), "coronal"),
        ((50, 1, 1), "axial"),
    ],
)
def test_equal_spacings_are_decided_by_the_shape(shape: tuple[int, int, int], plane: str) -> None:
    assert SliceOrientation.of(np.eye(4), shape).plane == plane


def test_a_single_slice_is_never_cut_into_rows_whatever_its_spacing() -> None:
    orientation = SliceOrientation.of(np.diag([1.0, 0.2, 1.0, 1.0]), (30, 1, 40))
    assert orientation.plane == "coronal" and orientation.to_slices(np.zeros((30, 1, 40))).shape == (1, 40, 30)


def test_an_oblique_volume_takes_the_nearest_axes() -> None:
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.0, 3.0])
    oblique, straight = (SliceOrientation.of(matrix, SHAPE) for matrix in (affine, np.diag([1.0, 1.0, 3.0, 1.0])))
    assert (oblique.axes, oblique.flips, oblique.plane) == (straight.axes, straight.flips, "axial")
    assert oblique.spacing == pytest.approx((3.0, 1.0, 1.0))


def test_an_affine_whose_axes_lie_in_a_plane_is_refused() -> None:
    affine = np.eye(4)
    affine[:3, 2] = affine[:3, 1]
    with pytest.raises(ValueError, match="affine must be 4 x 4, finite and invertible"):
        SliceOrientation.of(affine, SHAPE)
    assert SliceOrientation.of(np.diag([1e-5, 1e-5, 1e-5, 1.0]), SHAPE).plane == "axial"  # microscopy
