# SPDX-License-Identifier: Apache-2.0
"""Small volumes of odd size in every format, data type and orientation; each voxel has a value of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import SimpleITK
from nibabel.orientations import apply_orientation, inv_ornt_aff

from tests.interop.other_readers import LPS

SHAPE = (7, 6, 5)
DTYPES = ("uint8", "int16", "uint16", "float32")

TURN = np.deg2rad(20)
OBLIQUE = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = OBLIQUE @ np.diag([0.75, 0.875, 2.5])
AFFINE[:3, 3] = -31.5, 12.25, 40
"""RAS+, oblique, with three different spacings."""

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]
"""All 48 ways to store a volume."""


def voxels(dtype: str = "int16") -> np.ndarray:
    """Values from 1 to 210, each once, out of order."""
    return np.random.default_rng(5).permutation(np.arange(1, np.prod(SHAPE) + 1)).reshape(SHAPE).astype(dtype)


def stored(dtype: str, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The volume with its axes in another order and direction, and its affine then (RAS+): the same place."""
    array = voxels(dtype)
    return apply_orientation(array, orientation), AFFINE @ inv_ornt_aff(orientation, SHAPE)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray, slope: float = 1.0, inter: float = 0.0) -> None:
    """With a slope, the file holds the array as it is, and its values are other ones."""
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.header.set_data_dtype(array.dtype)
    nibabel.save(image, path)
    if slope != 1.0:  # nibabel itself chooses a slope for each array
        content = bytearray(path.read_bytes())
        content[112:120] = np.array([slope, inter], "<f4").tobytes()
        path.write_bytes(content)


def save_nrrd(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    lps = LPS @ affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
    }
    nrrd.write(str(path), array, header, index_order="F")


def in_simpleitk(array: np.ndarray, affine: np.ndarray) -> SimpleITK.Image:
    """The volume as ITK holds it."""
    lps, spacing = LPS @ affine, np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def save_metaimage(path: Path, array: np.ndarray, affine: np.ndarray, compress: bool = False) -> None:
    SimpleITK.WriteImage(in_simpleitk(array, affine), str(path), compress)


def forms(kind: str) -> np.ndarray:
    """An sform (RAS+) beside the qform `AFFINE`."""
    sform = AFFINE.copy()
    if kind == "shifted":
        sform[:3, 3] += 10, -5, 3
    elif kind == "turned":
        sform[:3, :3] = OBLIQUE @ sform[:3, :3]
    elif kind == "mirrored":
        sform[0] *= -1
    elif kind == "sheared":
        sform[0, 1] += 0.3
    elif kind == "unscaled":
        sform[:3, :3] *= 2
    return sform


FORMS = ("same", "shifted", "turned", "mirrored", "sheared", "unscaled")
UNITS = ("mm", "unknown", "micron", "meter")


def nifti_headers() -> Iterator[tuple[str, int, int, str]]:
    """Kind of the sform, code of the qform, code of the sform, unit of space."""
    yield from product(FORMS, (0, 1, 2), (0, 1, 2), UNITS)


def with_forms(kind: str, qform: int, sform: int, unit: str, array: np.ndarray) -> nibabel.Nifti1Image:
    """An image whose header states two places."""
    image = nibabel.Nifti1Image(array, AFFINE)
    image.set_qform(AFFINE, qform)
    image.set_sform(forms(kind), sform)
    image.header.set_xyzt_units(unit)
    return image
