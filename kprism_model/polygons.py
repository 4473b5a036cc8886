# SPDX-License-Identifier: Apache-2.0
"""Masks of polygons by the centres of pixels.

Points are (column, row), the centre of a pixel has whole numbers. A pixel belongs to a polygon if its centre is inside
by the even-odd rule. A centre that lies on an edge belongs to the polygon on its right, or below it, never to both.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(n, 2): the (column, row) of the corners of a closed polygon, the first one once."""


def filled(polygons: Iterable[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (row, column) of pixels of a picture of `shape` whose centres an odd number of polygons encloses."""
    rows, columns = shape
    starts, ends = [], []
    for points in polygons:
        starts.append(points)
        ends.append(np.roll(points, -1, axis=0))
    if not starts or not rows or not columns:
        return np.zeros(shape, bool)
    first, last = np.concatenate(starts), np.concatenate(ends)
    falls = first[:, 1] > last[:, 1]  # each edge from top to bottom, so that both directions round alike
    first[falls], last[falls] = last[falls].copy(), first[falls].copy()
    begin = np.clip(np.ceil(first[:, 1]), 0, rows).astype(int)
    count = np.clip(np.ceil(last[:, 1]), 0, rows).astype(int) - begin
    edge = np.repeat(np.arange(len(first)), count)
    row = begin[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    run = (last - first)[edge]
    crossing = first[edge, 0] + (row - first[edge, 1]) * run[:, 0] / run[:, 1]
    column = np.clip(np.ceil(crossing), 0, columns).astype(int)
    changes = np.bincount(row * (columns + 1) + column, minlength=rows * (columns + 1))
    inside: NDArray[np.bool_] = (np.cumsum(changes.reshape(rows, columns + 1), axis=1)[:, :columns] % 2).astype(bool)
    return inside
