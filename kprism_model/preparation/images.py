# SPDX-License-Identifier: Apache-2.0
"""Images of a download: a file as it is, or one frame or channel of a file with four axes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from PIL import Image

from kprism_model.data.volume_files import DAMAGE, open_gzip

NIFTI = (".nii.gz", ".nii")
PICTURE_ERRORS = (OSError, SyntaxError, Image.DecompressionBombError)  # all that Pillow raises for a damaged picture
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Grid:
    """The grid of an image: `shape` of a volume (i, j, k) as stored with its `affine`, or (rows, columns) of a picture.

    `spacing` in mm along each axis of a volume, from the affine; empty for pictures.
    """

    shape: tuple[int, ...]
    affine: np.ndarray[Any, np.dtype[np.float64]] | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        """Lengths of the affine's columns."""
        if self.affine is None:
            return ()
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))


class ImageSource(Protocol):
    """An image of a download. Errors of reading are ValueErrors that name the file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the image is made of."""

    @property
    def suffix(self) -> str:
        """Suffix of the file that `write` makes."""

    def grid(self) -> Grid:
        """The grid, from headers alone."""

    def write(self, path: Path) -> None:
        """Write the image to `path`, which does not exist; checks that the files are whole."""


def nifti_suffix(path: Path) -> str:
    """ ".nii.gz" or ".nii", or "" for another file."""
    return next((suffix for suffix in NIFTI if path.name.lower().endswith(suffix)), "")


def open_nifti(path: Path) -> Any:
    """A NIfTI image whose values are not read yet; ValueError that names the file."""
    try:
        image: Any = nib.load(path)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as NIfTI; it is damaged, cut off or of another format: {error}"
        ) from error
    if image.get_data_dtype().kind not in "biuf":
        raise ValueError(f"{path} holds values of the type {image.get_data_dtype()}, expected a number in each voxel")
    return image


def nifti_values(image: Any, path: Path, frame: int | None = None) -> NDArray[Any]:
    """The values of an open NIfTI image, or of one frame along its fourth axis; ValueError that names the file."""
    try:
        return np.asarray(image.dataobj if frame is None else image.dataobj[..., frame])
    except DAMAGE as error:
        raise ValueError(f"{path} cannot be read as NIfTI: {error}") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(rows, columns) of a picture, from its header; ValueError that names the file."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except PICTURE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


@dataclass(frozen=True)
class StoredImage:
    """A file that is taken as it is: a NIfTI volume of three axes, or a picture."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def suffix(self) -> str:
        """Its own."""
        return nifti_suffix(self.path) or self.path.suffix.lower()

    def grid(self) -> Grid:
        """The grid; ValueError for a volume that has not three axes."""
        if not nifti_suffix(self.path):
            return Grid(picture_size(self.path))
        image = open_nifti(self.path)
        if len(image.shape) != 3:
            raise ValueError(f"{self.path} has the shape {image.shape}, expected three axes")
        return Grid(tuple(image.shape), image.affine)

    def write(self, path: Path) -> None:
        """Hard link the file, or copy it to another disk; a file that is cut off is refused."""
        _check_whole(self.path)
        try:
            os.link(self.path.resolve(), path)
        except OSError:
            shutil.copyfile(self.path, path)


@dataclass(frozen=True)
class Frame:
    """One frame, or one channel, of a NIfTI file of four axes: the `number`-th along the last axis, from 0 on."""

    path: Path
    number: int

    suffix = ".nii.gz"

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def grid(self) -> Grid:
        """The grid of the frame; ValueError for another number of axes, or a frame that the file has not."""
        image = open_nifti(self.path)
        if len(image.shape) != 4 or not 0 <= self.number < image.shape[3]:
            raise ValueError(
                f"{self.path} has the shape {image.shape}, expected a fourth axis with a frame {self.number}"
            )
        return Grid(tuple(image.shape[:3]), image.affine)

    def write(self, path: Path) -> None:
        """Write the frame, with the values and scaling of the file."""
        image = open_nifti(self.path)
        frame = nib.Nifti1Image(nifti_values(image, self.path, self.number), image.affine)
        frame.header.set_xyzt_units(*image.header.get_xyzt_units())
        nib.save(frame, path)


def _check_whole(path: Path) -> None:
    """ValueError if a compressed file is cut off or damaged, a volume is shorter than its header says, or a picture
    cannot be decoded.
    """
    try:
        if path.name.lower().endswith(".nii.gz"):
            with open_gzip(path, "rb") as file:
                length = sum(iter(lambda: len(file.read(_AT_ONCE)), 0))
        elif path.name.lower().endswith(".nii"):
            length = path.stat().st_size
        else:
            with Image.open(path) as picture:
                picture.load()
            return
    except (*PICTURE_ERRORS, *DAMAGE) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
    image = open_nifti(path)
    expected = int(image.dataobj.offset) + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
    if length < expected:
        raise ValueError(f"{path} is cut off: {length} bytes, expected {expected}")
