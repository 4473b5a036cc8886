# SPDX-License-Identifier: Apache-2.0
"""Labels that are stored as the points of contours, in text files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kprism_model.polygons import Points, filled
from kprism_model.preparation.images import Grid
from kprism_model.preparation.labels import LabelMap


def read_contour(path: Path, grid: Grid) -> Points:
    """The points (column, row) of a closed polygon, two numbers in each line of the file.

    ValueError that names the file for a line of another form, fewer than three points, or a point outside the picture.
    """
    points = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not (parts := line.replace(",", " ").split()):
            continue
        try:
            x, y = (float(part) for part in parts)
        except ValueError:
            raise ValueError(f"{path}, line {number}: {line.strip()[:40]!r}, expected two numbers, x and y") from None
        points.append((x, y))
    if len(points) < 3:
        raise ValueError(f"{path} holds {len(points)} points, expected three or more")
    polygon = np.array(points)
    if not _within(polygon, grid):
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        swapped = "; are x and y swapped?" if _within(polygon[:, ::-1], grid) else ""
        raise ValueError(
            f"{path} has x from {low[0]:g} to {high[0]:g} and y from {low[1]:g} to {high[1]:g}, which leaves its "
            f"picture of {grid.shape[1]} columns and {grid.shape[0]} rows{swapped}"
        )
    return polygon


def contour_mask(polygon: Points, grid: Grid) -> NDArray[np.bool_]:
    """The pixels (row, column) whose centres a polygon encloses."""
    mask = np.zeros(grid.shape, bool)
    low = np.floor(polygon.min(axis=0)).clip(0).astype(int)
    columns, rows = np.ceil(polygon.max(axis=0)).astype(int) + 1 - low
    place = mask[low[1] : low[1] + rows, low[0] : low[0] + columns]
    place[:] = filled([polygon - low], (place.shape[0], place.shape[1]))
    return mask


@dataclass(frozen=True)
class NestedContours:
    """Contours of a structure and of a part of it, by one or several experts: a pixel counts if all of them agree.

    `outer` and `inner` are files, one for each expert. What is in both gets `inner_index`, the rest of the outer one
    `outer_index`. What of the inner one leaves the outer one is background, so that both together are the outer one.
    """

    outer: Sequence[Path]
    inner: Sequence[Path]
    outer_index: int
    inner_index: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The files."""
        return (*self.outer, *self.inner)

    def read(self, grid: Grid) -> LabelMap:
        """Fill the contours; ValueError if the inner one is wholly outside the outer one, or one is empty."""
        outer, inner = self.masks(grid)
        both = outer & inner
        names = ", ".join(path.name for path in self.files)
        if not outer.any() or not inner.any():
            raise ValueError(f"{self.outer[0].parent}: {names} enclose no pixel, or have none in common")
        if not both.any():
            raise ValueError(f"{self.outer[0].parent}: of {names}, the inner contour is wholly outside the outer one")
        labels = np.zeros(grid.shape, np.uint8)
        labels[outer] = self.outer_index
        labels[both] = self.inner_index
        return labels

    def masks(self, grid: Grid) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The outer and the inner structure, where all experts agree."""
        outer, inner = (
            np.logical_and.reduce([contour_mask(read_contour(path, grid), grid) for path in paths])
            for paths in (self.outer, self.inner)
        )
        return outer, inner


def _within(polygon: Points, grid: Grid) -> bool:
    """Whether all points are on a picture, to the outer edges of its pixels."""
    limits = np.array([grid.shape[1], grid.shape[0]]) - 0.5
    return bool(((polygon >= -0.5) & (polygon <= limits)).all())
