# SPDX-License-Identifier: Apache-2.0
"""Images of a download that are DICOM series, and labels that are MetaImage files (.mhd), both read by SimpleITK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from kprism_model.preparation.files import entries
from kprism_model.preparation.images import Grid
from kprism_model.preparation.labels import LabelMap, mapped_values

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN = 0.05  # distances of slices may differ from their mean by this share


def require_simpleitk(what: str) -> Any:
    """The module SimpleITK; ValueError that says how to install it if it is missing. `what` it is needed for."""
    try:
        import SimpleITK
    except ImportError as error:
        raise ValueError(
            f"{what} is read with SimpleITK, which is not installed; expected: pip install SimpleITK"
        ) from error
    return SimpleITK


@dataclass(frozen=True)
class DicomSeries:
    """A folder with the slices of one DICOM series, which becomes a NIfTI file (column, row, slice)."""

    folder: Path

    suffix = ".nii.gz"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the folder."""
        return tuple(path for path in entries(self.folder) if path.is_file())

    def grid(self) -> Grid:
        """The grid, from the headers of all slices; ValueError if slices are missing or lie unevenly."""
        return self._sorted()[1]

    def write(self, path: Path) -> None:
        """Write the values, rescaled as the series says."""
        sitk = require_simpleitk(f"the DICOM series {self.folder}")
        names, grid = self._sorted()
        try:
            image = sitk.ReadImage(names)
        except RuntimeError as error:
            raise ValueError(f"{self.folder} cannot be read as a DICOM series: {error}") from error
        values = np.asarray(sitk.GetArrayViewFromImage(image)).transpose(2, 1, 0)
        if values.dtype not in (np.uint8, np.int16, np.uint16, np.int32, np.float32):
            values = values.astype(np.float32)
        nifti = nib.Nifti1Image(values, grid.affine)
        nifti.header.set_dim_info(slice=2)
        nib.save(nifti, path)

    def _sorted(self) -> tuple[list[str], Grid]:
        """The files by the position of their slices, and the grid."""
        sitk = require_simpleitk(f"the DICOM series {self.folder}")
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(self.folder))
        if len(found) != 1:
            raise ValueError(f"{self.folder} holds {len(found)} DICOM series, expected one")
        names = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(self.folder), found[0]))
        headers = []
        for name in names:
            reader = sitk.ImageFileReader()
            reader.SetFileName(name)
            try:
                reader.ReadImageInformation()
            except RuntimeError as error:
                raise ValueError(f"{name} cannot be read as DICOM: {error}") from error
            headers.append(reader)
        first = headers[0]
        origins = np.array([header.GetOrigin() for header in headers])
        sizes = {header.GetSize()[:2] for header in headers}
        steps = np.diff(origins, axis=0)
        if len(sizes) > 1 or len(headers) < 2:
            raise ValueError(
                f"{self.folder} holds slices of {len(sizes)} sizes, {len(headers)} in all, expected a volume"
            )
        step = steps.mean(axis=0)
        if np.abs(steps - step).max() > _UNEVEN * np.linalg.norm(step):
            raise ValueError(f"{self.folder} has slices at uneven distances: some of the series are missing")
        affine = np.eye(4)
        affine[:3, :3] = np.array(first.GetDirection()).reshape(3, 3)
        affine[:3, 0] *= first.GetSpacing()[0]
        affine[:3, 1] *= first.GetSpacing()[1]
        affine[:3, 2], affine[:3, 3] = step, origins[0]
        return names, Grid((*first.GetSize()[:2], len(headers)), _LPS_TO_RAS @ affine)


@dataclass(frozen=True)
class PoselessMask:
    """A MetaImage file of values whose header has no pose: its axes run to the patient's left, posterior and superior.

    `indices` maps its values. `data` is the file of its voxels, or that of the header. The voxels are turned to the
    axes of the image, by the affine of the image.
    """

    header: Path
    data: Path
    indices: Mapping[int, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """The two files."""
        return (self.header, self.data)

    def read(self, grid: Grid) -> LabelMap:
        """Read the values, turn them, and map them."""
        sitk = require_simpleitk(str(self.header))
        try:
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(self.header))).transpose(2, 1, 0)
        except RuntimeError as error:
            raise ValueError(
                f"{self.header} cannot be read; {self.data.name} is damaged or cut off: {error}"
            ) from error
        stored = axcodes2ornt(("L", "P", "S"))
        turned = apply_orientation(values, ornt_transform(stored, io_orientation(grid.affine)))
        if turned.shape != grid.shape:
            raise ValueError(
                f"{self.header} has the shape {turned.shape} along the axes of its image, but the image {grid.shape}"
            )
        return mapped_values(np.ascontiguousarray(turned), self.indices, self.header)
