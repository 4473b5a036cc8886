# SPDX-License-Identifier: Apache-2.0
"""Volumes as stacks of slices in one anatomical orientation, for training and prediction, and the inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import ArrayLike, NDArray

# Slices are oriented as a radiologist reads them: columns run to the patient's left (in sagittal slices to posterior),
# rows to posterior (in sagittal and coronal slices to inferior). Keyed by the anatomical plane.
_SLICE_ROW_COLUMN = {"sagittal": "LIP", "coronal": "PIL", "axial": "SPL"}
_PLANES = ("sagittal", "coronal", "axial")  # by the anatomical axis that slices are stacked along: x, y, z
_SAME_SPACING = 1.01  # spacings whose ratio is below this count as equal
_CLEARLY_COARSER = 1.5  # the spacing of slices over that of pixels, if no other sign counts
_MARGIN = 1.05  # so much farther from the others must the finest of three spacings be than the coarsest
_THIN_RATIO = 3  # of equally spaced axes, one with this many times fewer voxels than the others is the slice axis
_MATRIX_STEP, _SMALLEST_MATRIX = 16, 128  # scanners reconstruct slices of 128 x 128, 256 x 256, 320 x 320 pixels, ...

PLANES = ("axial", "coronal", "sagittal")
"""The anatomical planes that a volume can be cut in."""


@dataclass(frozen=True)
class SliceOrientation:
    """How the axes (i, j, k) of a stored volume map to (slice, row, column), and back.

    `axes` are the volume axes that the slice, row and column axes come from, `flips` whether each runs backwards,
    `shape` the volume's shape (i, j, k), `spacing` the distance in mm between (slices, rows, columns).
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plane: str

    @classmethod
    def of(
        cls, affine: ArrayLike, shape: tuple[int, ...], plane: str | None = None, slice_axis: int | None = None
    ) -> SliceOrientation:
        """The orientation for a volume (i, j, k) with a 4 x 4 voxel-to-RAS affine in mm (the NIfTI convention).

        `plane` is one of `PLANES`; by default it is the plane of acquisition. The slice axis is then the first of these
        that applies:

        1. an axis of one voxel, because a slice is never a single row of pixels;
        2. `slice_axis`, the axis (0 to 2) that images were stacked along, because DICOM series and some NIfTI headers
           (see `stored_slice_axis`) state it;
        3. the axis whose spacing differs from that of the other two, because pixels are square: slices may be further
           apart than pixels (thick slices) or closer together (CT with 0.98 mm pixels and 0.625 mm slices);
        4. if no two spacings are equal: the axis with the largest one if that is half as large again as the next; else
           the axis that the numbers of voxels show (rules 5 and 6); else the one whose spacing is farthest from the
           others, because pixels are nearly square;
        5. of equal spacings, the axis with less than a third of the voxels of each other axis, because a slice is
           larger than the stack is high;
        6. of equal spacings, the axis with fewer voxels than the other two, if these have the same number and it is
           one that scanners use for slices (a multiple of 16, at least 128): 256 x 256 x 176 is a stack of 176. Crops
           and atlases (35 x 51 x 35, 182 x 218 x 182) do not look like that by chance;
        7. the axis nearest to the patient's long axis (axial slices), because nothing shows the stack.

        The order in which the axes are stored plays no part in rules 3 to 7: files are often reordered, and an image
        must give the same slices before and after. The axes of an oblique volume count as the nearest anatomical axes,
        each used once. Slices are those of the file and are never resampled. ValueError for an unusable affine or
        shape, and for another plane or slice axis.
        """
        matrix = _checked(affine, shape)
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        source = io_orientation(matrix)
        anatomical = source[:, 0].astype(int)
        if slice_axis not in (None, 0, 1, 2):
            raise ValueError(f"the slice axis is {slice_axis!r}; expected 0, 1 or 2")
        if plane is None:
            plane = _PLANES[max(anatomical[axis] for axis in _slice_axes(spacing, shape, slice_axis))]
        elif plane not in PLANES:
            raise ValueError(f"the plane is {plane!r}; expected one of {', '.join(PLANES)}")
        target = axcodes2ornt(tuple(_SLICE_ROW_COLUMN[plane]))
        change = ornt_transform(source, target)
        i, j, k = np.argsort(change[:, 0]).tolist()
        return cls(
            (i, j, k),
            (bool(change[i, 1] < 0), bool(change[j, 1] < 0), bool(change[k, 1] < 0)),
            (int(shape[0]), int(shape[1]), int(shape[2])),
            (float(spacing[i]), float(spacing[j]), float(spacing[k])),
            plane,
        )

    @property
    def stack_shape(self) -> tuple[int, int, int]:
        """Number of slices, and rows and columns of each."""
        slices, rows, columns = (self.shape[axis] for axis in self.axes)
        return slices, rows, columns

    def to_slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A volume (i, j, k) as a view (slice, row, column); in colour (i, j, k, 3) as (slice, row, column, 3)."""
        self._check(volume.shape[:3], self.shape, "volume")
        return volume.transpose(*self.axes, *range(3, volume.ndim))[self._steps()]

    def to_volume(self, slices: NDArray[Any]) -> NDArray[Any]:
        """A stack (slice, row, column[, 3]) as a view (i, j, k[, 3]); the inverse of `to_slices`."""
        self._check(slices.shape[:3], self.stack_shape, "stack of slices")
        return slices[self._steps()].transpose(*np.argsort(self.axes), *range(3, slices.ndim))

    def locate(self, voxel: ArrayLike) -> tuple[int, int, int]:
        """The (slice, row, column) of one voxel (i, j, k)."""
        number, row, column = self.points_to_slices(voxel).tolist()
        return int(number), int(row), int(column)

    def points_to_slices(self, points: ArrayLike) -> NDArray[np.float64]:
        """Voxel positions (..., 3) as (i, j, k) -> (slice, row, column)."""
        moved = np.asarray(points, dtype=np.float64)[..., list(self.axes)]
        return self._mirrored(moved)

    def points_to_volume(self, points: ArrayLike) -> NDArray[np.float64]:
        """Positions (..., 3) as (slice, row, column) -> voxel positions (i, j, k)."""
        return self._mirrored(np.asarray(points, dtype=np.float64))[..., np.argsort(self.axes)]

    def _mirrored(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        last = np.array([self.shape[axis] - 1 for axis in self.axes], dtype=np.float64)
        return np.where(self.flips, last - points, points)

    def _steps(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)

    @staticmethod
    def _check(shape: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
        if shape != expected:
            raise ValueError(f"the {what} has shape {shape}, expected {expected}")


def _checked(affine: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine as float64; ValueError if the affine or the shape cannot belong to a volume."""
    matrix = np.asarray(affine, dtype=np.float64)
    if len(shape) != 3:
        raise ValueError(f"a volume must have three axes, got shape {tuple(shape)}")
    if min(shape) < 1:
        raise ValueError(f"a volume must hold at least one voxel, got shape {tuple(shape)}")
    if matrix.shape == (4, 4):
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        for axis in range(3):
            if not (np.isfinite(spacing[axis]) and spacing[axis] > 0):
                raise ValueError(
                    f"the voxel spacing along {'ijk'[axis]} is {spacing[axis]:g} mm; expected a positive number "
                    f"(an affine must be 4 x 4, finite and invertible, got {matrix.tolist()})"
                )
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not _invertible(matrix):
        raise ValueError(f"an affine must be 4 x 4, finite and invertible, got {matrix.tolist()}")
    return matrix


def _invertible(matrix: NDArray[np.float64]) -> bool:
    """Whether the axes span space; tested on unit vectors, so that small voxels do not count as flat."""
    directions = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(abs(np.linalg.det(directions)) > 1e-6)


def stored_slice_axis(header: Nifti1Header) -> int | None:
    """The axis (0 to 2) that a NIfTI header names as that of the slices (`dim_info`); None if it names none.

    Converters such as dcm2niix write it, and so do the local copies of DICOM series.
    """
    axis = header.get_dim_info()[2]
    return None if axis is None else int(axis)


def _slice_axes(spacing: NDArray[np.float64], shape: tuple[int, ...], slice_axis: int | None) -> list[int]:
    """The axes that can be the slice axis by the first six rules of `SliceOrientation.of`; all if none applies."""
    single = [axis for axis in range(3) if shape[axis] == 1]
    if slice_axis is not None and (slice_axis in single or not single):
        return [slice_axis]
    if single:
        return single
    finest, middle, coarsest = np.argsort(spacing).tolist()
    above, below = spacing[coarsest] / spacing[middle], spacing[middle] / spacing[finest]
    stacked = [axis for axis in range(3) if _looks_stacked(shape, axis)]
    if above > _SAME_SPACING and below > _SAME_SPACING:
        if above >= _CLEARLY_COARSER:
            return [coarsest]
        return stacked or [finest if below > above * _MARGIN else coarsest]
    if above > _SAME_SPACING:
        return [coarsest]
    if below > _SAME_SPACING:
        return [finest]
    return stacked or [0, 1, 2]


def _looks_stacked(shape: tuple[int, ...], axis: int) -> bool:
    """Whether the numbers of voxels, at equal spacings, show that images were stacked along an axis."""
    count, (one, other) = shape[axis], (shape[side] for side in range(3) if side != axis)
    if _THIN_RATIO * count < min(one, other):
        return True
    return one == other > count and one >= _SMALLEST_MATRIX and one % _MATRIX_STEP == 0
