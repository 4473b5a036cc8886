# SPDX-License-Identifier: Apache-2.0
"""What other programs read of a file: voxels (i, j, k) and the affine to millimetres in RAS+."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import nrrd
import numpy as np
import SimpleITK

SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # starting threads takes longer than these files do

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Read(NamedTuple):
    """Voxels, with three axes, and affine (RAS+) as a program reads them."""

    array: np.ndarray
    affine: np.ndarray

    def point_of(self, value: float) -> np.ndarray:
        """The position in mm of the only voxel with a value."""
        [place] = np.argwhere(self.array == value)
        return (self.affine @ [*place, 1])[:3]


def by_simpleitk(path: Path) -> Read:
    """As ITK reads a file, and 3D Slicer with it; RuntimeError if it refuses the file."""
    image = in_itk(path)
    array = SimpleITK.GetArrayFromImage(image).transpose()
    return Read(array.reshape(*array.shape, *[1] * (3 - array.ndim)), LPS @ lps_of(image))


def in_itk(path: Path) -> SimpleITK.Image:
    """A file as ITK holds it; it knows the extensions of MetaImages in lower case only."""
    if path.suffix.lower() != ".mha" or path.suffix == ".mha":
        return SimpleITK.ReadImage(str(path))
    with tempfile.TemporaryDirectory() as folder:
        return SimpleITK.ReadImage(str(shutil.copy(path, Path(folder) / "image.mha")))


def lps_of(image: Any) -> np.ndarray:
    """The affine (LPS) of a SimpleITK image."""
    axes = image.GetDimension()
    affine = np.eye(4)
    affine[:axes, :axes] = np.reshape(image.GetDirection(), (axes, axes)) * image.GetSpacing()
    affine[:axes, 3] = image.GetOrigin()
    return affine


def by_nibabel(path: Path) -> Read:
    """As nibabel reads a NIfTI file."""
    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj)
    while array.ndim > 3:
        array = array[..., 0]
    return Read(array.reshape(*array.shape, *[1] * (3 - array.ndim)), image.affine)


def by_pynrrd(path: Path) -> Read:
    """As pynrrd reads an NRRD file in the space left-posterior-superior, or in one of two axes."""
    array, header = nrrd.read(str(path), index_order="F")
    assert header.get("space", "left-posterior-superior") == "left-posterior-superior"
    affine = np.eye(4)
    directions = np.asarray(header["space directions"], float)
    affine[: directions.shape[1], : len(directions)] = directions.T
    affine[: directions.shape[1], 3] = header["space origin"]
    return Read(array.reshape(*array.shape, *[1] * (3 - array.ndim)), LPS @ affine)


def readers_of(path: Path) -> dict[str, Any]:
    """Name -> reader, for all that read a kind of file."""
    own = {".gz": {"nibabel": by_nibabel}, ".nii": {"nibabel": by_nibabel}, ".nrrd": {"pynrrd": by_pynrrd}}
    return {"SimpleITK": by_simpleitk, **own.get(path.suffix, {})}
