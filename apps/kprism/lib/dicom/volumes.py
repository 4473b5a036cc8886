# SPDX-License-Identifier: Apache-2.0
"""Local files of a series: its voxels as NIfTI, and label files on its grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from lib.dicom.series import Series
from lib.errors import RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.medical_image import MedicalImage, describe
from lib.imaging.nifti import note_volumes
from lib.imaging.reading import read_mask

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
"""How NIfTI stores colour."""

SLICE_AXIS = 2
"""The axis of a volume that the images of its series are stacked along."""


def save_volume(array: NDArray[Any], affine: NDArray[np.float64], path: Path, volumes: int = 1) -> None:
    """Write voxels (column, row, slice[, 3]) as `.nii.gz`, with little compression, because the file stays here.

    The header names the last axis as that of the slices, so the volume is cut in the plane of its images, also if it
    is oblique or its slices are closer together than its pixels. It also says how many `volumes` come one after the
    other along that axis (see `Series`).
    """
    if array.ndim == 4:
        array = np.ascontiguousarray(array.astype(np.uint8)).view(RGB)[..., 0]
    elif array.dtype.kind == "f" and array.dtype != np.float32:
        array = array.astype(np.float32)
    elif array.dtype.itemsize == 8:
        array = array.astype(np.int32)
    image = nibabel.Nifti1Image(array, affine)
    _note_slices(image.header, volumes)
    with igzip.open(path, "wb", compresslevel=1) as stream:
        image.to_stream(stream)  # slice by slice


def volume_header(
    grid: tuple[int, int, int], dtype: np.dtype[Any], affine: NDArray[np.float64], volumes: int = 1
) -> nibabel.Nifti1Header:
    """The header of a `.nii` file with voxels of a type (`RGB` for colour), as `save_volume` writes it.

    RequestError if a side is longer than NIfTI allows (32,767).
    """
    try:
        image = nibabel.Nifti1Image(np.broadcast_to(np.zeros((), dtype), grid), affine)
    except HeaderDataError as error:
        raise RequestError(f"a volume of {describe(grid)} voxels cannot be kept as NIfTI: {error}") from error
    header = image.header
    _note_slices(header, volumes)
    header.set_slope_inter(1, 0)
    header.set_data_offset(header.single_vox_offset + header.extensions.get_sizeondisk())
    return header


def _note_slices(header: nibabel.Nifti1Header, volumes: int) -> None:
    header.set_xyzt_units("mm")
    header.set_dim_info(slice=SLICE_AXIS)
    if volumes > 1:
        note_volumes(header, volumes)


def read_labels(path: Path, series: Series) -> tuple[NDArray[np.uint8], FileLabels | None]:
    """A label file on the grid of its series, and what it says of its values; RequestError if it does not fit."""
    if path.suffix == ".bin":
        raw = np.fromfile(path, np.uint8)
        if raw.size != np.prod(series.grid):
            raise RequestError(f"the label has {raw.size} voxels, series {series.uid} {describe(series.grid)}")
        return raw.reshape(series.grid, order="F"), None
    mask = read_mask(path, "the label")
    grid = MedicalImage(f"series {series.uid}", np.broadcast_to(np.uint8(0), series.grid), series.affine, 3, ".nii", "")
    return grid.on_grid(mask, "the label"), mask.file_labels
