# SPDX-License-Identifier: Apache-2.0
"""Volumes of NRRD and MetaImage files, which SimpleITK reads, as NIfTI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from kprism_model.preparation.dicom import require_simpleitk
from kprism_model.preparation.images import Grid
from kprism_model.preparation.labels import LabelMap, mapped_values

ITK_SUFFIXES = (".nrrd", ".mha")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ItkImage:
    """A volume of three axes and one channel."""

    path: Path

    suffix = ".nii.gz"

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def grid(self) -> Grid:
        """The grid, from the header; ValueError for another number of axes or channels."""
        reader = require_simpleitk(str(self.path)).ImageFileReader()
        reader.SetFileName(str(self.path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise ValueError(f"{self.path} cannot be read: {_reason(error)}") from error
        size = tuple(reader.GetSize())
        if len(size) != 3 or reader.GetNumberOfComponents() != 1:
            channels = reader.GetNumberOfComponents()
            raise ValueError(f"{self.path} has the shape {size} and {channels} channels, expected three axes and one")
        affine = np.eye(4)
        affine[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
        affine[:3, 3] = reader.GetOrigin()
        return Grid(size, _LPS_TO_RAS @ affine)

    def write(self, path: Path) -> None:
        """Write the values as NIfTI, with the same geometry."""
        values = itk_values(self.path)
        if values.dtype.kind in "iu" and values.dtype.itemsize == 8:  # programs other than ours do not read these
            values = values.astype(np.int32 if np.abs(values).max() < 2**31 else np.float64)
        image = nib.Nifti1Image(values, self.grid().affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, path)


@dataclass(frozen=True)
class ItkLabel:
    """A label volume of values, as `LabelVolume` of NIfTI."""

    path: Path
    indices: Mapping[int, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, grid: Grid) -> LabelMap:
        """Read the values, check that they are whole and known, and map them."""
        values = itk_values(self.path)
        if values.shape != grid.shape:
            raise ValueError(f"{self.path} has the shape {values.shape}, but its image {grid.shape}")
        return mapped_values(values, self.indices, self.path)


def itk_values(path: Path) -> NDArray[Any]:
    """The values of a volume, (i, j, k); ValueError that names the file."""
    sitk = require_simpleitk(str(path))
    try:
        values: NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {_reason(error)}") from error
    return values.transpose()


def _reason(error: RuntimeError) -> str:
    """The last line of an error of SimpleITK, which says what is wrong."""
    return str(error).strip().splitlines()[-1].removeprefix("ITK ERROR: ").strip()
