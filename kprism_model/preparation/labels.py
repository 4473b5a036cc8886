# SPDX-License-Identifier: Apache-2.0
"""Labels of a download, in all the ways that they are stored, as one map of label indices on the grid of the image.

Original values are mapped by a table. A value that the table does not have is an error that names it, never background.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kprism_model.preparation.images import PICTURE_ERRORS, Grid, nifti_values, open_nifti

LabelMap = NDArray[np.uint8]

_WHOLE = 1e-3  # a label that is stored as a floating-point number may differ from a whole one by this much
_VALUES_AT_ONCE = 1 << 22


class LabelSource(Protocol):
    """The label of one image. Errors are ValueErrors that name the file and the value."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the label is made of."""

    def read(self, grid: Grid) -> LabelMap:
        """Label indices, uint8, on the grid of the image: (i, j, k) as stored, or (rows, columns)."""


class RemarkingLabel(LabelSource, Protocol):
    """A label whose reading may tell something worth knowing, such as masks that overlap."""

    @property
    def remarks(self) -> list[str]:
        """Sentences of the last `read`. They are no part of the `repr`, which tells how a label is read."""


@dataclass(frozen=True)
class LabelVolume:
    """A NIfTI file of values, `indices` maps them (without the background 0). `frame` of four axes, if it is given.

    The grid is that of the image: of the label's own geometry only the shape counts, because several downloads have
    label files with another affine, or none, for the same voxels.
    """

    path: Path
    indices: Mapping[int, int]
    frame: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, grid: Grid) -> LabelMap:
        """Read the values, check that they are whole and known, and map them."""
        image = open_nifti(self.path)
        shape = image.shape if self.frame is None else image.shape[:3]
        if tuple(shape) != grid.shape or (self.frame is not None and len(image.shape) != 4):
            raise ValueError(f"{self.path} has the shape {tuple(image.shape)}, but its image {grid.shape}")
        return mapped_values(nifti_values(image, self.path, self.frame), self.indices, self.path)


@dataclass(frozen=True)
class MaskVolumes:
    """One NIfTI mask for each class: `masks` are pairs of a file and a label index; a later one lies on top.

    Any positive value is the structure; two different positive values in one file are an error.
    """

    masks: Sequence[tuple[Path, int]]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in their order."""
        return tuple(path for path, _ in self.masks)

    def read(self, grid: Grid) -> LabelMap:
        """Read and join the masks."""
        labels = np.zeros(grid.shape, np.uint8)
        for path, index in self.masks:
            image = open_nifti(path)
            if tuple(image.shape) != grid.shape:
                raise ValueError(f"{path} has the shape {tuple(image.shape)}, but its image {grid.shape}")
            values = nifti_values(image, path)
            positive = np.unique(values[values > 0])
            if len(positive) > 1 or values.min() < 0:
                raise ValueError(f"{path} holds the values {positive[:5].tolist()}, expected 0 and one positive value")
            labels[values > 0] = index
        return labels


@dataclass(frozen=True)
class MaskPictures:
    """Black and white pictures of one class, `index`: what is white in any of `paths` is the structure.

    0 and 1, or 0 and 255, in grey, in colour or with a palette. In pictures of 0 and 1, 1 is white. In others,
    and in JPEG, which leaves traces of other values, a pixel is white if its brightest channel is above 127.
    """

    paths: Sequence[Path]
    index: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(self.paths)

    def read(self, grid: Grid) -> LabelMap:
        """Read the masks and join them."""
        labels = np.zeros(grid.shape, np.uint8)
        for path in self.paths:
            values = mask_values(path, grid)
            is_binary = values.max() <= 1 and path.suffix.lower() not in (".jpg", ".jpeg")
            labels[values > (0 if is_binary else 127)] = self.index
        return labels


def mapped_values(values: NDArray[Any], indices: Mapping[int, int], path: Path) -> LabelMap:
    """Values of a label file (any shape) -> label indices; ValueError names a value that is not whole or not known."""
    flat = values.reshape(-1)
    labels = np.zeros(flat.shape, np.uint8)
    for start in range(0, len(flat), _VALUES_AT_ONCE):
        part = flat[start : start + _VALUES_AT_ONCE]
        whole = np.rint(part) if part.dtype.kind == "f" else part
        if not (near := np.abs(part - whole) <= _WHOLE).all():
            raise ValueError(f"{path} holds the value {part[~near][0]:g}, expected whole numbers")
        present = np.unique(whole).astype(np.int64).tolist()
        if unknown := [value for value in present if value and value not in indices]:
            raise ValueError(f"{path} holds the value {unknown[0]}, expected 0 or one of {sorted(indices)}")
        for value in present:
            if value:
                labels[start : start + _VALUES_AT_ONCE][whole == value] = indices[value]
    return labels.reshape(values.shape)


def label_counts(labels: LabelMap) -> NDArray[np.int64]:
    """How many voxels have each of the label indices 0 to 255."""
    flat = labels.reshape(-1)
    parts = range(0, max(1, len(flat)), _VALUES_AT_ONCE)  # all at once, bincount would need eight bytes for each voxel
    counts = [np.bincount(flat[start : start + _VALUES_AT_ONCE], minlength=256) for start in parts]
    total: NDArray[np.int64] = np.sum(counts, axis=0, dtype=np.int64)
    return total


def mask_values(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """The brightest channel of a mask, 8-bit (rows, columns); ValueError if it is not a picture of this size."""
    values: NDArray[np.uint8]
    with _opened(path, grid) as picture:
        if picture.mode in ("1", "L"):
            return np.asarray(picture.convert("L"))
        if picture.mode == "P" and (palette := picture.getpalette("RGB")):
            brightest = np.zeros(256, np.uint8)
            brightest[: len(palette) // 3] = np.reshape(palette, (-1, 3)).max(axis=-1)
            values = brightest[np.asarray(picture)]
            return values
    values = read_rgb(path, grid).max(axis=-1)
    return values


def read_rgb(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """A picture as 8-bit (rows, columns, 3), whatever its mode; ValueError if it cannot be read or has another size."""
    with _opened(path, grid) as picture:
        if picture.mode.startswith("I") or picture.mode == "F":
            values = np.asarray(picture, np.float32)
            scale = 255 / 65535 if values.max() > 255 else 1.0
            grey = (values * scale).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        if picture.mode == "1":
            return np.asarray(picture.convert("L").convert("RGB"))
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


@contextmanager
def _opened(path: Path, grid: Grid) -> Iterator[Image.Image]:
    """A picture whose size was checked; what goes wrong while it is read becomes a ValueError that names it."""
    try:
        with Image.open(path) as picture:
            shape = (picture.height, picture.width)
            if shape != grid.shape:
                raise ValueError(f"{path} has {shape} rows and columns, but its image {grid.shape}")
            yield picture
    except PICTURE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
