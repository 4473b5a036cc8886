# SPDX-License-Identifier: Apache-2.0
"""Pictures whose pixels are label values, and labels of which parts are unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kprism_model.preparation.images import PICTURE_ERRORS, Grid, StoredImage
from kprism_model.preparation.labels import LabelMap, LabelSource, mapped_values

UNKNOWN = 255
"""What stands for an unknown voxel between a source of `WithoutUnknown` and itself."""


def is_colour(path: Path) -> bool:
    """Whether a picture is stored in colour, from its header; ValueError that names the file."""
    try:
        with Image.open(path) as picture:
            return len(picture.getbands()) > 2 or picture.mode == "P"
    except PICTURE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


@dataclass(frozen=True)
class SinglePicture(StoredImage):
    """A picture of one page."""

    def grid(self) -> Grid:
        """Its size; ValueError for several pages, which would be a volume without a known spacing."""
        grid = super().grid()
        with Image.open(self.path) as picture:
            pages = getattr(picture, "n_frames", 1)
        if pages != 1:
            raise ValueError(f"{self.path} has {pages} pages, expected one picture; volumes are read as NIfTI or NRRD")
        return grid


@dataclass(frozen=True)
class LabelPicture:
    """A picture of values: grey, or the numbers of a palette, not its colours. `indices` maps them, as of volumes."""

    path: Path
    indices: Mapping[int, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, grid: Grid) -> LabelMap:
        """Read the values, check that they are known, and map them."""
        try:
            with Image.open(self.path) as picture:
                values = np.asarray(picture.convert("RGB") if picture.mode in ("RGBA", "LA") else picture)
        except PICTURE_ERRORS as error:
            raise ValueError(f"{self.path} cannot be read as a picture: {error}") from error
        if values.ndim == 3:
            if (values != values[..., :1]).any():
                raise ValueError(f"{self.path} is a picture in colour, expected label values in grey")
            values = values[..., 0]
        if values.shape != grid.shape:
            raise ValueError(f"{self.path} has {values.shape} rows and columns, but its image {grid.shape}")
        return mapped_values(values.astype(np.int64) if values.dtype.kind == "b" else values, self.indices, self.path)


@dataclass(frozen=True)
class WithoutUnknown:
    """A label whose `source` gives `UNKNOWN` where nobody said what is there: then it is refused.

    A data set has no word for such voxels, and as background they would teach what is wrong.
    """

    source: LabelSource
    value: int

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of the source."""
        return self.source.files

    def read(self, grid: Grid) -> LabelMap:
        """The label; ValueError that tells how many voxels are unknown."""
        labels = self.source.read(grid)
        if count := int((labels == UNKNOWN).sum()):
            raise ValueError(
                f"{self.files[0]} has {count:,} voxels of the value {self.value}, which says that they are to be "
                "ignored; expected a label of the whole image"
            )
        return labels
