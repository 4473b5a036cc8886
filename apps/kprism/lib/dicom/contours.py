# SPDX-License-Identifier: Apache-2.0
"""Outlines of masks along the edges of their pixels; `kprism_model.polygons.filled` makes the same masks of them."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kprism_model.polygons import Points


def outlines(mask: NDArray[np.bool_]) -> list[Points]:
    """The polygons around the parts of a mask (row, column), without collinear corners.

    A hole is joined with what surrounds it by a keyhole, a channel without width, so each polygon stands for itself.
    Pixels that touch at a corner are parts of their own.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return []
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    loops = _loops(np.pad(box, 1))
    _join_holes(loops, (box.shape[0] + 2, box.shape[1] + 1))
    first = np.array([columns[0], rows[0]]) - 0.5  # the first line of the grid is before the first pixel
    return [np.array(loop.joined(), np.float64) + first for loop in loops if not loop.is_hole]


@dataclass
class _Loop:
    """A closed line along the edges of pixels: its corners (column, row), the first the leftmost of the topmost.

    `holes` are joined to it: (corner, its place along the edge behind the corner, where the channel ends, the hole).
    """

    corners: list[tuple[int, int]]
    is_hole: bool
    holes: list[tuple[int, int, tuple[int, int], int, _Loop]] = field(default_factory=list)

    def joined(self) -> list[tuple[int, int]]:
        """The corners with those of the holes, to which channels lead. A hole's own must be joined before."""
        if not self.holes:
            return self.corners
        result: list[tuple[int, int]] = []
        done = 0
        for corner, _, mouth, _, hole in self.holes:
            result += self.corners[done : corner + 1]
            done = corner + 1
            start, *others = hole.corners
            inner = [start, *(others if self.is_hole else others[::-1])]  # the other way round: areas have signs
            result += [mouth, *inner, start, mouth]
        result += self.corners[done:]
        return [point for place, point in enumerate(result) if point != result[place - 1]]


def _loops(mask: NDArray[np.bool_]) -> list[_Loop]:
    """The lines between a mask, whose border is empty, and what surrounds it.

    The corners on a line of the grid lie in pairs: between the first and the second one there is an edge, and so on. A
    corner at which two pixels touch counts twice, once for each of them.
    """
    above_left, above_right, below_left, below_right = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
    falling = above_left & below_right & ~above_right & ~below_left
    rising = above_right & below_left & ~above_left & ~below_right
    single = above_left ^ above_right ^ below_left ^ below_right
    row, column = np.nonzero(single | falling | rising)
    twice = np.repeat(np.arange(len(row)), np.where(single[row, column], 1, 2))
    row, column = row[twice], column[twice]
    is_second = np.r_[False, twice[1:] == twice[:-1]]  # it has the edge to the right, the first that to the left
    is_upper = is_second == rising[row, column]
    across = _partners(np.lexsort((is_second, column, row)))
    down = _partners(np.lexsort((~is_upper, row, column)))
    places = list(zip(column.tolist(), row.tolist(), strict=True))
    is_outer = below_right[row, column].tolist()
    visited = [False] * len(places)
    loops = []
    for start in range(len(places)):
        if visited[start]:
            continue
        corners, at = [], start
        while not visited[at]:
            corners.append(places[at])
            visited[at] = True
            at = across[at]
            corners.append(places[at])
            visited[at] = True
            at = down[at]
        loops.append(_Loop(corners, not is_outer[start]))
    return loops


def _partners(order: NDArray[np.intp]) -> list[int]:
    """For each corner the other one of its pair, if the corners in `order` are pairs."""
    partners = np.empty_like(order)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return list(partners.tolist())


def _join_holes(loops: list[_Loop], shape: tuple[int, int]) -> None:
    """Join each hole with the line to the left of its first corner; that may be another hole.

    `shape` are the rows of pixels and the lines of the grid across them.
    """
    holes = [loop for loop in loops if loop.is_hole]
    if not holes:
        return
    owner, corner_of = np.full(shape, -1), np.zeros(shape, int)
    for number, loop in enumerate(loops):
        for at in range(1, len(loop.corners), 2):  # the edges down or up
            column, start = loop.corners[at]
            end = loop.corners[(at + 1) % len(loop.corners)][1]
            owner[min(start, end) + 1 : max(start, end) + 1, column] = number
            corner_of[min(start, end) + 1 : max(start, end) + 1, column] = at
    # Lines of the grid are between pixels: line n is between the pixels n and n + 1 of the padded mask.
    for hole in reversed(holes):  # those further down, or right, end at others and are joined first
        column, row = hole.corners[0]
        left = np.flatnonzero((owner[row : row + 2, :column] >= 0).any(axis=0))[-1]
        pixel = row if owner[row, left] >= 0 else row + 1
        loop, corner = loops[owner[pixel, left]], int(corner_of[pixel, left])
        along = abs(row - loop.corners[corner][1])
        insort(loop.holes, (corner, along, (int(left), row), len(loop.holes), hole), key=lambda joint: joint[:2])
        hole.corners = hole.joined()
        hole.holes = []
