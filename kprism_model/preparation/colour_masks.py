# SPDX-License-Identifier: Apache-2.0
"""Labels that are stored as coloured pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.preparation.images import Grid
from kprism_model.preparation.labels import LabelMap, read_rgb

Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""

_PURE: tuple[Colour, ...] = tuple((red, green, blue) for red, green, blue in product((0, 255), repeat=3))
_PIXELS_AT_ONCE = 1 << 20
_AREA = np.ones((5, 5), bool)  # JPEG mixes colours at edges; an area of this size is not an edge


def read_colour(text: str) -> Colour:
    """A colour as the catalogue writes it: "255,0,0" is red."""
    red, green, blue = (int(part) for part in text.split(","))
    return red, green, blue


@dataclass(frozen=True)
class ColourMask:
    """A coloured picture, `colours` maps a colour to a label index; black is background.

    A pixel gets the nearest of these colours, because JPEG changes colours at edges. An area of another pure colour,
    such as blue, is an error: it is never taken for background or for a class.
    """

    path: Path
    colours: Mapping[Colour, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def read(self, grid: Grid) -> LabelMap:
        """Read the picture and give each pixel the index of the nearest colour."""
        known = {(0, 0, 0): 0, **self.colours}
        foreign = [colour for colour in _PURE if colour not in known]
        palette = np.array([*known, *foreign], np.int32)
        indices = np.array([*known.values()], np.uint8)
        pixels = read_rgb(self.path, grid)
        labels = np.zeros(grid.shape, np.uint8)
        is_foreign = np.zeros(grid.shape, bool)
        rows_at_once = max(1, _PIXELS_AT_ONCE // max(1, grid.shape[1]))
        for start in range(0, grid.shape[0], rows_at_once):
            rows = slice(start, start + rows_at_once)
            distances = _distances(pixels[rows], palette)
            labels[rows] = indices[distances[..., : len(known)].argmin(axis=-1)]
            is_foreign[rows] = distances.argmin(axis=-1) >= len(known)
        self._check(pixels, is_foreign)
        return labels

    def _check(self, pixels: NDArray[np.uint8], is_foreign: NDArray[np.bool_]) -> None:
        if not is_foreign.any() or not (area := ndimage.binary_erosion(is_foreign, _AREA)).any():
            return
        row, column = np.argwhere(area)[0].tolist()
        seen = tuple(pixels[row, column].tolist())
        expected = ", ".join(map(str, self.colours))
        pure = min(_PURE, key=lambda colour: sum((a - b) ** 2 for a, b in zip(colour, seen, strict=True)))
        swapped = "; are red and blue swapped?" if pure[::-1] in self.colours else ""
        raise ValueError(
            f"{self.path} has the colour {seen} around row {row} and column {column}, "
            f"expected black or one of {expected} (red, green, blue){swapped}"
        )


def _distances(pixels: NDArray[np.uint8], palette: NDArray[np.int32]) -> NDArray[np.int32]:
    """Squared distances (row, column, colour) of pixels (row, column, 3) from each of the colours (colour, 3)."""
    distances = np.zeros((*pixels.shape[:2], len(palette)), np.int32)
    for channel in range(3):
        distances += (pixels[..., channel, None].astype(np.int32) - palette[:, channel]) ** 2
    return distances
