# SPDX-License-Identifier: Apache-2.0
"""Label maps with values above 255, such as FreeSurfer's 1001: their values numbered 1, 2, ... in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.imaging.label_maps import MAX_LABELS
from lib.imaging.mapped import Allocate

MAX_VALUE = 2**32
"""More than any table of labels has."""


def numbered(
    planes: Callable[[int], NDArray[Any]], grid: tuple[int, int, int], allocate: Allocate
) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """An index map (i, j, k) of 1, 2, ... from whole numbers, and the values that were numbered.

    `planes` gives the values (i, j) of a plane k. RequestError, the end of a sentence, for more than 255 values.
    """
    found: set[int] = set()
    for k in range(grid[2]):
        found.update(int(value) for value in np.unique(planes(k)))
        if len(found - {0}) > MAX_LABELS:
            raise RequestError(f"holds more than {MAX_LABELS} different values; a label holds {MAX_LABELS} structures")
    values = sorted(found - {0})
    labels: NDArray[np.uint8] = allocate(grid, np.uint8)
    for k in range(grid[2]):
        plane = planes(k)
        labels[:, :, k] = np.where(plane > 0, np.searchsorted(values, plane) + 1, 0)
    return labels, tuple(values)
