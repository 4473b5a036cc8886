# SPDX-License-Identifier: Apache-2.0
"""Label maps with values above 255, such as FreeSurfer's 1001: their values numbered 1, 2, ... in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.intensity import rescaled
from lib.errors import RequestError
from lib.imaging.label_maps import MAX_LABELS
from lib.imaging.mapped import Allocate

MAX_VALUE = 2**32
"""More than any table of labels has."""


def numbered(
    array: NDArray[Any], rescale: tuple[float, float], allocate: Allocate
) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """An index map of 1, 2, ... from voxels (i, j, k) and their slope and intercept, and the values that were numbered.

    RequestError, the end of a sentence, for values that are no integers from 0, and for more than 255 of them.
    """
    found: set[float] = set()
    for k in range(array.shape[2]):
        found.update(np.unique(rescaled(array[:, :, k], rescale)).tolist())
        if len(found) > MAX_LABELS + 1:
            raise RequestError(f"holds more than {MAX_LABELS} different values; a label holds {MAX_LABELS} structures")
    wrong = [value for value in found if not (0 <= value < MAX_VALUE and float(value).is_integer())]
    if wrong:
        raise RequestError(
            f"is not a label map: it holds the value {wrong[0]:g}; expected one integer from 0 for each voxel"
        )
    values = sorted(int(value) for value in found if value)
    labels: NDArray[np.uint8] = allocate(array.shape, np.uint8)
    for k in range(array.shape[2]):
        plane = rescaled(array[:, :, k], rescale)
        labels[:, :, k] = np.where(plane > 0, np.searchsorted(values, plane) + 1, 0)
    return labels, tuple(values)
