# SPDX-License-Identifier: Apache-2.0
"""Volumes as stacks of slices: one anatomical orientation for training and prediction, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import ArrayLike, NDArray

# Slices lie as a radiologist reads them: columns run to the patient's left (in sagittal slices to posterior), rows to
# posterior (in sagittal and coronal slices to inferior). Keyed by the anatomical plane.
_SLICE_ROW_COLUMN = {"sagittal": "LIP", "coronal": "PIL", "axial": "SPL"}
_PLANES = ("sagittal", "coronal", "axial")
_SAME_SPACING = 1.01  # spacings whose ratio is below this count as equal


@dataclass(frozen=True)
class SliceOrientation:
    """How the axes (i, j, k) of a stored volume become (slice, row, column), and back.

    `axes` are the volume axes that the slice, row and column axes come from, `flips` whether each runs backwards,
    `shape` the volume's shape (i, j, k), `spacing` the distance in mm between (slices, rows, columns).
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plane: str

    @classmethod
    def of(cls, affine: ArrayLike, shape: tuple[int, ...]) -> SliceOrientation:
        """The orientation for a volume (i, j, k) with a 4 x 4 voxel-to-RAS affine in mm (the NIfTI convention).

        Slices are cut across the axis of the largest spacing, so that they have the finest pixels; where spacings are
        equal, across the axis nearest to the patient's long axis (axial slices).
        """
        matrix = np.asarray(affine, dtype=np.float64)
        if len(shape) != 3:
            raise ValueError(f"a volume must have three axes, got shape {tuple(shape)}")
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise ValueError(f"an affine must be 4 x 4, finite and invertible, got {matrix.tolist()}")
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        source = io_orientation(matrix)  # type: ignore[no-untyped-call]
        anatomical = source[:, 0].astype(int)
        coarse = [axis for axis in range(3) if spacing[axis] * _SAME_SPACING >= spacing.max()]
        plane = _PLANES[max(anatomical[axis] for axis in coarse)]
        target = axcodes2ornt(tuple(_SLICE_ROW_COLUMN[plane]))  # type: ignore[no-untyped-call]
        change = ornt_transform(source, target)  # type: ignore[no-untyped-call]
        i, j, k = np.argsort(change[:, 0]).tolist()
        return cls(
            (i, j, k),
            (bool(change[i, 1] < 0), bool(change[j, 1] < 0), bool(change[k, 1] < 0)),
            (int(shape[0]), int(shape[1]), int(shape[2])),
            (float(spacing[i]), float(spacing[j]), float(spacing[k])),
            plane,
        )

    def to_slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A volume (i, j, k) as a view (slice, row, column)."""
        self._check(volume.shape, self.shape, "volume")
        return volume.transpose(self.axes)[self._steps()]

    def to_volume(self, slices: NDArray[Any]) -> NDArray[Any]:
        """A stack (slice, row, column) as a view (i, j, k); the inverse of `to_slices`."""
        self._check(slices.shape, tuple(self.shape[axis] for axis in self.axes), "stack of slices")
        return slices[self._steps()].transpose(np.argsort(self.axes))

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
    def _check(found: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
        if found != expected:
            raise ValueError(f"the {what} has shape {found}, expected {expected}")
