# SPDX-License-Identifier: Apache-2.0
"""Images and labels as files that every program reads: NIfTI with a plain header, PNG without notes.

Nothing of the original header is kept but the place of the voxels: headers may name patients.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from PIL import Image

from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage

SHEAR = 1e-5
"""Axes count as rectangular if the cosine between two is smaller: what 32 bits of a header round is less."""


class Voxels:
    """The values of an image (i, j, k[, 3]) plane by plane, in the smallest type that holds them without loss."""

    def __init__(self, image: MedicalImage, *, channel: int | None = None) -> None:
        self._image, self._channel = image, channel
        self.grid = image.grid
        slope, intercept = image.rescale
        self._is_whole = image.array.dtype.kind in "bui" and slope.is_integer() and float(intercept).is_integer()
        self.dtype = self._smallest() if self._is_whole else np.dtype(np.float32)

    def planes(self) -> Iterator[NDArray[Any]]:
        """The planes k as files hold them: (j, i), or (j, i, 3) for colour, contiguous."""
        for k in range(self.grid[2]):
            yield np.ascontiguousarray(self._plane(k).swapaxes(0, 1).astype(self.dtype))

    def digest(self) -> hashlib._Hash:
        """The beginning of a SHA-256 of type, grid and voxels, to be updated with each plane."""
        return hashlib.sha256(f"{self.dtype.str} {self.grid}".encode())

    def _plane(self, k: int) -> NDArray[Any]:
        stored = self._image.array[:, :, k]
        stored = stored if self._channel is None else stored[..., self._channel]
        slope, intercept = self._image.rescale
        if self._is_whole:
            return stored.astype(np.int64) * int(slope) + int(intercept)
        return (stored * float(slope) + float(intercept)).astype(np.float32)

    def _smallest(self) -> np.dtype[Any]:
        low, high = 0, 0
        for k in range(self.grid[2]):
            plane = self._plane(k)
            low, high = min(low, int(plane.min())), max(high, int(plane.max()))
        for kind in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return np.dtype(kind)
        return np.dtype(np.float64)


def write_volume(path: Path, voxels: Voxels, affine: NDArray[np.float64], slice_axis: int) -> str:
    """Write a `.nii.gz` file with an affine (RAS+) and the axis along which the image was acquired.

    Returns the SHA-256 of its voxels.
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.grid)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    if is_rectangular(affine):
        header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header.set_xyzt_units("mm")
    header.set_dim_info(slice=slice_axis)
    header["vox_offset"] = 352
    start = io.BytesIO()
    header.write_to(start)
    digest = voxels.digest()
    with path.open("wb") as file, igzip.IGzipFile("", "wb", 1, file, mtime=0) as stream:
        stream.write(start.getvalue().ljust(352, b"\0"))
        for plane in voxels.planes():
            stream.write(plane.data)
            digest.update(plane.data)
    return digest.hexdigest()


def write_picture(path: Path, voxels: Voxels) -> str:
    """Write a `.png` file of 8 or 16 bits; returns the SHA-256 of its voxels.

    RequestError for values that it cannot hold.
    """
    if voxels.dtype not in (np.uint8, np.uint16):
        raise RequestError(f"a picture of type {voxels.dtype} cannot be written as PNG; expected 8 or 16 bits")
    [plane] = voxels.planes()
    Image.fromarray(plane).save(path, "PNG", compress_level=1)
    digest = voxels.digest()
    digest.update(plane.data)
    return digest.hexdigest()


def is_rectangular(affine: NDArray[np.float64]) -> bool:
    """Whether the axes of voxels are at right angles: ITK reads no others."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < SHEAR)
