# SPDX-License-Identifier: Apache-2.0
"""A stored volume as slices that the network can look at: oriented, scaled once, and identified by its content."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kprism_model.orientation import SliceOrientation
from kprism_model.preprocess import scale_intensity
from kprism_model.volumes.prompts import digest_of


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as slices; cheap to share between requests, and never changed.

    images: float32 (slice, row, column) or (slice, row, column, 3) in [0, 1]; `digest` identifies them.
    """

    images: NDArray[np.float32] = field(repr=False)
    orientation: SliceOrientation
    digest: str

    @classmethod
    def of(
        cls,
        array: NDArray[Any],
        affine: ArrayLike,
        *,
        plane: str | None = None,
        slice_axis: int | None = None,
        modality: str | None = None,
        units: str | None = None,
        window: tuple[float, float] | None = None,
        digest: str | None = None,
    ) -> Volume:
        """Cut a stored array into slices and scale its intensities, by one range for the whole volume.

        `array` is (i, j, k), as nibabel gives it, with the voxel-to-RAS `affine` in mm; in colour (i, j, k, 3), where a
        fourth channel is left out, or NIfTI's type RGB24. `plane` and `slice_axis` as in
        `SliceOrientation.of`; `modality`, `units` and `window` as in `scale_intensity`, the first two for grey volumes
        only. `digest` identifies the slices; by default it is computed from them. ValueError for other shapes,
        unusable affines and what `scale_intensity` refuses.
        """
        array = _colour_as_axis(np.asarray(array))
        if array.ndim == 4 and array.shape[3] not in (3, 4):
            raise ValueError(
                f"a volume of shape {array.shape} has a fourth axis of {array.shape[3]}: a time series or several "
                "channels; expected one volume (i, j, k), or colour (i, j, k, 3)"
            )
        if array.ndim not in (3, 4):
            raise ValueError(f"a volume must have three axes, got shape {array.shape}")
        orientation = SliceOrientation.of(affine, array.shape[:3], plane, slice_axis)
        if array.ndim == 3:
            images = scale_intensity(orientation.to_slices(array), modality=modality, units=units, window=window)
        else:
            images = scale_intensity(orientation.to_slices(array[..., :3]), window=window)
        return cls(images, orientation, digest_of(images) if digest is None else digest)

    @classmethod
    def of_slices(cls, images: NDArray[np.float32], orientation: SliceOrientation, digest: str) -> Volume:
        """From slices that are cut and scaled already; `digest` must tell them from any others."""
        if images.shape[:3] != orientation.stack_shape or images.ndim not in (3, 4):
            raise ValueError(f"slices have shape {images.shape}; the orientation expects {orientation.stack_shape}")
        return cls(images, orientation, digest)

    def turned(self, orientation: SliceOrientation, digest: str) -> Volume:
        """The same voxels cut in another plane, as a view; `digest` identifies the new slices."""
        return Volume.of_slices(orientation.to_slices(self.orientation.to_volume(self.images)), orientation, digest)

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.images.shape[1], self.images.shape[2]

    def locate(self, voxel: ArrayLike) -> tuple[int, int, int]:
        """(slice, row, column) of a voxel (i, j, k)."""
        return self.orientation.locate(voxel)

    def empty_labels(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A new index map (i, j, k) of zeros, and its view (slice, row, column) to write to."""
        labels = np.zeros(self.orientation.shape, np.uint8, order="F")
        return labels, self.orientation.to_slices(labels)


def _colour_as_axis(array: NDArray[Any]) -> NDArray[Any]:
    """Voxels of named channels (NIfTI's RGB24) with the channels as a last axis."""
    names = array.dtype.names
    if names is None:
        return array
    if not {"R", "G", "B"} <= set(names):
        raise ValueError(f"voxels have the fields {', '.join(names)}; expected numbers, or R, G and B")
    return np.stack([array[name] for name in "RGB"], axis=-1)
