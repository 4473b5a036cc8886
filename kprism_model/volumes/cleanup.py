# SPDX-License-Identifier: Apache-2.0
"""Post-processing of masks: keep the largest component, fill holes, and apply scribbles exactly as they were drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import bounding_box, components_touching


def keep_largest_component(mask: NDArray[np.bool_], points: Sequence[tuple[int, ...]] = ()) -> NDArray[np.bool_]:
    """The largest face-connected component of a mask of any number of axes, and every component that holds a point.

    `points` are indices into the mask. Of equally large components the first in memory order is kept.
    """
    box = bounding_box(mask)
    kept = np.zeros_like(mask)
    if box is None:
        return kept
    components, _ = ndimage.label(mask[box])
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    corner = [axis.start for axis in box]
    indices = (tuple(np.subtract(point, corner)) for point in points if mask[point])
    kept[box] = np.isin(components, [sizes.argmax(), *(components[index] for index in indices)])
    return kept


def fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with all holes filled that it encloses on every side, over all axes together."""
    box = bounding_box(mask)
    filled = mask.copy()
    if box is not None:
        filled[box] = ndimage.binary_fill_holes(mask[box])
    return filled


def apply_scribbles(
    mask: NDArray[np.bool_], scribbles: NDArray[np.int8], before: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """The mask (row, column) with every scribbled pixel set: 1 in `scribbles` is structure, -1 is background.

    A negative scribble can cut the mask into pieces. A piece beside the cut is removed if it holds no positive scribble
    and nothing of the mask `before`: outside the frame of a box, the user wanted nothing.
    """
    positive, negative = scribbles > 0, scribbles < 0
    kept: NDArray[np.bool_] = (mask & ~negative) | positive
    cut = mask & negative
    if cut.any():
        wanted = positive if before is None else positive | before
        beside_cut = components_touching(kept, ndimage.binary_dilation(cut))
        kept &= ~beside_cut | components_touching(kept, wanted)
    return kept
