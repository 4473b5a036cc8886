# SPDX-License-Identifier: Apache-2.0
"""Volumes become the same slices however they were stored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Header
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from kprism_model.orientation import SliceOrientation, stored_slice_axis

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


def stored(
    order: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of a volume whose axes have an order like "RAS", with `shape` and `spacing` in this order."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(order)))
    axes = np.argsort(change[:, 0])  # stored axis -> patient axis
    size, step = np.empty(3, int), np.empty(3)
    size[axes], step[axes] = shape, spacing
    return np.diag([*step, 1.0]) @ inv_ornt_aff(change, tuple(size)), shape


@pytest.mark.parametrize(
    ("order", "shape", "spacing", "plane"),
    [
        ("LPS", (512, 512, 400), (0.98, 0.98, 0.625), "axial"),  # CT: slices closer together than pixels
        ("SLP", (400, 512, 512), (0.625, 0.98, 0.98), "axial"),  # the same file with its axes in another order
        ("LPS", (168, 168, 263), (4.07, 4.07, 3.0), "axial"),  # PET
        ("LPS", (168, 168, 300), (4.07, 4.07, 5.0), "axial"),
        ("RAS", (256, 216, 10), (1.4, 1.4, 10.0), "axial"),  # ACDC
        ("RAS", (35, 51, 35), (1.0, 1.0, 1.0), "axial"),  # MSD hippocampus: a crop of an isotropic volume
        ("RAS", (35, 44, 44), (1.0, 1.0, 1.0), "axial"),
        ("RAS", (197, 233, 189), (1.0, 1.0, 1.0), "axial"),  # MNI152
        ("RAS", (176, 208, 176), (1.0, 1.0, 1.0), "axial"),  # OASIS in atlas space
        ("RAS", (160, 192, 160), (1.0, 1.0, 1.0), "axial"),
        ("LIA", (256, 256, 256), (1.0, 1.0, 1.0), "axial"),  # FreeSurfer's grid
        ("LPS", (240, 240, 155), (1.0, 1.0, 1.0), "axial"),  # BraTS
        ("PSR", (256, 256, 176), (1.0, 1.0, 1.0), "sagittal"),  # T1, stored as it was acquired
        ("RAS", (176, 256, 256), (1.0, 1.0, 1.0), "sagittal"),  # the same, reordered by an analysis package
        ("PIR", (512, 512, 15), (0.6, 0.6, 4.0), "sagittal"),  # thick sagittal slices of a spine
        ("RPI", (15, 512, 512), (4.0, 0.6, 0.6), "sagittal"),
        ("IPL", (512, 384, 15), (0.6, 0.6, 4.0), "sagittal"),
        ("RIP", (256, 256, 120), (0.9, 0.9, 1.5), "coronal"),
        ("LPS", (256, 200, 30), (0.9, 1.1, 3.0), "axial"),  # pixels that are not square
        ("LPS", (256, 256, 1), (0.7, 0.7, 0.7), "axial"),
        ("PSR", (256, 256, 1), (0.7, 0.7, 0.7), "sagittal"),
    ],
)
def test_the_plane_of_acquisition_shows_in_spacing_and_matrix(
    order: str, shape: tuple[int, int, int], spacing: tuple[float, float, float], plane: str
) -> None:
    assert SliceOrientation.of(*stored(order, shape, spacing)).plane == plane


@given(
    shape=st.tuples(*[st.sampled_from([1, 10, 35, 128, 176, 256, 400])] * 3),
    spacing=st.tuples(*[st.sampled_from([0.6, 0.625, 1.0, 1.005, 4.0])] * 3),
    number=st.integers(0, 47),
)
def test_the_order_of_the_axes_plays_no_part(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], number: int
) -> None:
    change = ALL_48[number]
    order = np.argsort(change[:, 0])
    affine = np.diag([*spacing, 1.0])
    reordered = tuple(shape[axis] for axis in order)
    plain = SliceOrientation.of(affine, shape)
    other = SliceOrientation.of(affine @ inv_ornt_aff(change, shape), reordered)
    assert (other.plane, other.stack_shape) == (plain.plane, plain.stack_shape)
    assert other.spacing == pytest.approx(plain.spacing)


def test_a_stated_slice_axis_comes_before_what_the_numbers_show() -> None:
    affine = np.diag([0.9, 1.0, 1.0, 1.0])  # pixels that are not square: the numbers alone say sagittal
    assert SliceOrientation.of(affine, (256, 256, 100)).plane == "sagittal"
    assert SliceOrientation.of(affine, (256, 256, 100), slice_axis=2).plane == "axial"
    assert SliceOrientation.of(affine, (256, 256, 100), "coronal", 2).plane == "coronal"
    assert SliceOrientation.of(affine, (256, 1, 100), slice_axis=2).plane == "coronal"  # a slice taken out of it
    with pytest.raises(ValueError, match="the slice axis is 3; expected 0, 1 or 2"):
        SliceOrientation.of(affine, (256, 256, 100), slice_axis=3)


def test_a_stated_slice_axis_of_an_oblique_stack_is_kept_whatever_the_angle() -> None:
    for angle in np.deg2rad(range(0, 360, 15)):
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag([1.4, 1.4, 0.9])
        for axis in range(3):
            assert SliceOrientation.of(affine, (60, 50, 40), slice_axis=axis).axes[0] == axis


def test_nifti_headers_state_the_slice_axis() -> None:
    header = Nifti1Header()
    assert stored_slice_axis(header) is None
    header.set_dim_info(slice=1)
    assert stored_slice_axis(header) == 1


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


@pytest.mark.parametrize(
    ("spacing", "shape", "plane"),
    [
        ((0.70, 0.72, 0.60), (512, 512, 400), "axial"),  # the matrix of a scanner shows the slices
        ((0.70, 0.72, 0.60), (500, 490, 400), "axial"),  # nearly square pixels do
        ((0.72, 0.60, 0.70), (512, 400, 512), "coronal"),
        ((0.60, 0.72, 0.70), (400, 512, 512), "sagittal"),
        ((0.70, 0.80, 5.00), (512, 512, 40), "axial"),  # slices far apart count more than anything
        ((5.00, 0.80, 0.70), (40, 512, 512), "sagittal"),
        ((0.90, 1.10, 1.00), (200, 220, 30), "axial"),  # a stack that is much less high than a slice is wide
        ((1.00, 1.20, 1.40), (180, 200, 190), "axial"),  # no sign: the largest spacing
    ],
)
def test_the_slice_axis_if_no_two_spacings_are_equal(
    spacing: tuple[float, ...], shape: tuple[int, ...], plane: str
) -> None:
    for order in itertools.permutations(range(3)):  # files store their axes in any order
        affine = np.eye(4)
        affine[:3, :3] = np.diag(spacing)[:, order]
        assert SliceOrientation.of(affine, tuple(shape[axis] for axis in order)).plane == plane
