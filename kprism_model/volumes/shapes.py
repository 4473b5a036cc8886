# SPDX-License-Identifier: Apache-2.0
"""Geometry of masks (row, column): growth from one slice to the next, interpolation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED, bounding_box, components_touching

BoolArray = NDArray[np.bool_]


def confine(probability: NDArray[np.float32], mask: BoolArray, reach: float) -> NDArray[np.float32]:
    """Keep the components of a probability map that touch `mask`, the structure on the slice before; zero elsewhere.

    `reach` is the greatest distance in pixels from `mask` at which probabilities are kept.
    """
    rows, columns = _crop(mask, margin=int(reach) + 2)
    crop, near_mask = probability[rows, columns], mask[rows, columns]
    near = ndimage.distance_transform_edt(~near_mask) <= reach
    predicted = (crop >= 0.5) & near
    detached = predicted & ~components_touching(predicted, near_mask, EIGHT_CONNECTED)
    kept = np.zeros_like(probability)
    kept[rows, columns] = np.where(near & ~detached, crop, 0)
    return kept


def interpolate_masks(one: BoolArray, other: BoolArray, shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Masks between two non-empty masks, by shape-based interpolation (Raya and Udupa 1990).

    `shares` (n,) are positions between `one` (0) and `other` (1). The masks' centres move on a straight line, and the
    signed distances to the outlines, centred, are blended. Returns (n, row, column) of 0 and 1; none is empty.
    """
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in (one, other)])
    result = np.zeros((len(shares), *one.shape), np.float32)
    distances = [_signed_distance(mask) for mask in (one, other)]
    for number, share in enumerate(shares):
        centre = (1 - share) * centres[0] + share * centres[1]
        moved = [
            ndimage.shift(distance, centre - own, order=1, mode="nearest")
            for distance, own in zip(distances, centres, strict=True)
        ]
        blended = (1 - share) * moved[0] + share * moved[1]
        result[number] = blended >= min(0.0, float(blended.max()))
    return result


def _signed_distance(mask: BoolArray) -> NDArray[np.float64]:
    """Distance to the outline in pixels, positive inside; half a pixel for the pixels beside it."""
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    distance: NDArray[np.float64] = np.where(mask, inside - 0.5, 0.5 - outside)
    return distance


def _crop(mask: BoolArray, margin: int) -> tuple[slice, slice]:
    """Rows and columns of the mask's box with a margin; ValueError for an empty mask."""
    box = bounding_box(mask, margin)
    if box is None:
        raise ValueError(f"a mask of shape {mask.shape} is empty; expected at least one pixel")
    return box[0], box[1]
