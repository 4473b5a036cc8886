# SPDX-License-Identifier: Apache-2.0
"""An image as it is stored, and the one place that turns its voxel indices into slices with rows and columns.

Stored arrays are indexed (i, j, k) with i the fastest in the file, as viewers count voxels and NIfTI and NRRD store
them. A 2-D picture is a volume of one slice: i is its column, j its row, k is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from kprism_model.orientation import SliceOrientation
from kprism_model.preprocess import scale_intensity
from lib.errors import RequestError

Voxel = tuple[int, int, int]
"""(i, j, k) of a voxel of the stored image."""


@dataclass(frozen=True)
class MedicalImage:
    """A picture or volume with everything needed to write a mask on the same grid.

    `array` is (i, j, k) or (i, j, k, 3) for colour; `affine` maps (i, j, k, 1) to millimetres in RAS+ (NIfTI's axes);
    `dimensions` is 2 where the file itself has two axes; `suffix` is the file's extension; `digest` identifies its
    content; `name` stands for the image in messages.
    """

    name: str
    array: NDArray[Any] = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    dimensions: int
    suffix: str
    digest: str
    header: Nifti1Header | None = field(default=None, repr=False)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Voxels along i, j and k."""
        return self.array.shape[:3]  # type: ignore[return-value]

    @property
    def is_colour(self) -> bool:
        """Whether voxels have red, green and blue."""
        return self.array.ndim == 4

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along i, j and k in millimetres."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    @cached_property
    def orientation(self) -> SliceOrientation:
        """How this image is cut into slices: as the weights were trained, and never into slices of a single row."""
        affine = self.affine.copy()
        for axis in range(3):
            if self.grid[axis] == 1:
                affine[:3, axis] *= max(self.spacing) * self.grid[axis - 1] * self.grid[axis - 2] / self.spacing[axis]
        return SliceOrientation.of(affine, self.grid)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.grid[self.orientation.axes[0]]

    @property
    def slice_shape(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        _, row_axis, column_axis = self.orientation.axes
        return self.grid[row_axis], self.grid[column_axis]

    def to_slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A view (slice, row, column) of an array (i, j, k) on this image's grid."""
        return self.orientation.to_slices(volume)

    @cached_property
    def scaled(self) -> NDArray[np.float32]:
        """Intensities in [0, 1] as (slice, row, column) or (slice, row, column, 3), scaled once for the whole image."""
        if not self.is_colour:
            return scale_intensity(self.to_slices(self.array))
        channels = [self.to_slices(self.array[..., channel]) for channel in range(3)]
        return np.stack([scale_intensity(np.stack(planes, -1)) for planes in zip(*channels, strict=True)])

    def prepare(self) -> None:
        """Scale the intensities now, so that the time is not counted as the network's."""
        self.scaled  # noqa: B018 - computed on first access

    @property
    def nbytes(self) -> int:
        """Memory of the stored and the scaled array together."""
        return self.array.nbytes + self.array.size * np.dtype(np.float32).itemsize

    def locate(self, voxel: Voxel) -> tuple[int, int, int]:
        """The (slice, row, column) of a voxel."""
        number, row, column = self.orientation.points_to_slices(voxel)
        return int(number), int(row), int(column)

    def empty_labels(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A new index map (i, j, k) of zeros on this grid, and its view (slice, row, column) to write to."""
        labels = np.zeros(self.grid, np.uint8, order="F")
        return labels, self.to_slices(labels)

    def check_mask(self, mask: MedicalImage, what: str) -> None:
        """Refuse a mask that is not on this image's grid, naming both shapes."""
        if mask.is_colour or mask.grid != self.grid:
            raise RequestError(
                f"{what} has {describe(mask.array.shape)} voxels, but {self.name} has {describe(self.grid)}"
            )


def describe(shape: tuple[int, ...]) -> str:
    """A shape as people write it, for messages: 256 x 256 x 23."""
    return " x ".join(str(side) for side in shape)
