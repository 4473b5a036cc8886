# SPDX-License-Identifier: Apache-2.0
"""Small corrections of masks: parts, cavities, and what scribbles say outright."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def largest_part(mask: NDArray[np.bool_], points: Sequence[tuple[int, ...]] = ()) -> NDArray[np.bool_]:
    """The largest face-connected part of a mask of any number of dimensions, and the parts that hold one of `points`.

    Of equally large parts the first in memory order is kept.
    """
    box = _box(mask)
    kept = np.zeros_like(mask)
    if box is None:
        return kept
    parts, _ = ndimage.label(mask[box])
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    corner = [side.start for side in box]
    held = (tuple(np.subtract(point, corner)) for point in points if mask[point])
    kept[box] = np.isin(parts, [sizes.argmax(), *(parts[place] for place in held)])
    return kept


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with the cavities that it encloses on all sides, in all dimensions together."""
    box = _box(mask)
    filled = mask.copy()
    if box is not None:
        filled[box] = ndimage.binary_fill_holes(mask[box])
    return filled


def as_scribbled(
    mask: NDArray[np.bool_], scribbles: NDArray[np.int8], before: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """A mask (row, column) in which what was drawn is so: 1 in `scribbles` is on the structure, -1 is not.

    A part of the mask that a negative scribble cuts off goes, too, if it holds nothing positive and nothing of the mask
    `before`: beyond the frame of a box, nothing was meant.
    """
    positive, negative = scribbles > 0, scribbles < 0
    kept: NDArray[np.bool_] = (mask & ~negative) | positive
    cut = mask & negative
    if cut.any():
        parts, _ = ndimage.label(kept)
        meant = positive if before is None else positive | before
        beside = np.setdiff1d(parts[ndimage.binary_dilation(cut)], parts[meant])
        kept &= ~np.isin(parts, beside[beside > 0])
    return kept


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The mask's box, or None for an empty mask."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else None
