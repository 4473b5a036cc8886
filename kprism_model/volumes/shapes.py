# SPDX-License-Identifier: Apache-2.0
"""Geometry of masks (row, column): clicks that describe a mask, growth from one slice to the next, interpolation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED, bounding_box, components_touching
from kprism_model.queries import Click

BoolArray = NDArray[np.bool_]

MAXIMUM_PARTS = 3
"""At most this many connected components of a mask get a positive click, the largest ones."""
MINIMUM_PART_SHARE = 0.1
"""A component gets a click if it has at least this share of the largest component's pixels."""
NEGATIVE_CLICKS = 4
"""Negative clicks around a mask, one in each quarter."""
NEGATIVE_CLICK_DISTANCE = 0.6
"""Distance of negative clicks from the outline in radii of the mask; two pixels are added to it."""


def propagation_clicks(mask: BoolArray) -> tuple[Click, ...]:
    """Clicks that describe a mask to the network on the next slice: one inside each large component, four around all.

    A positive click lies on the deepest pixel of its component. The negative ones lie in the four quarters around the
    mask's centre, as far as the image goes.
    """
    rows, columns = _crop(mask, margin=int(NEGATIVE_CLICK_DISTANCE * _radius(mask)) + 5)
    crop, top, left = mask[rows, columns], rows.start, columns.start
    depth = ndimage.distance_transform_edt(np.pad(crop, 1))[1:-1, 1:-1]
    components, count = ndimage.label(crop, EIGHT_CONNECTED)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[:MAXIMUM_PARTS]
    clicks = []
    for part in largest:
        if sizes[part] >= MINIMUM_PART_SHARE * sizes[largest[0]]:
            row, column = np.unravel_index(np.where(components == part + 1, depth, 0).argmax(), crop.shape)
            clicks.append(Click(float(top + row), float(left + column), True))
    clicks += [Click(float(top + row), float(left + column), False) for row, column in _pixels_around(crop)]
    return tuple(clicks)


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


def _radius(mask: BoolArray) -> float:
    """The radius of a disc with the same area."""
    return float(np.sqrt(np.count_nonzero(mask) / np.pi))


def _crop(mask: BoolArray, margin: int) -> tuple[slice, slice]:
    """Rows and columns of the mask's box with a margin; ValueError for an empty mask."""
    box = bounding_box(mask, margin)
    if box is None:
        raise ValueError(f"a mask of shape {mask.shape} is empty; expected at least one pixel")
    return box[0], box[1]


def _pixels_around(mask: BoolArray) -> list[tuple[int, int]]:
    """Pixels beside a mask: for each quarter the one nearest to its diagonal."""
    outside = ndimage.distance_transform_edt(~mask)
    distance = NEGATIVE_CLICK_DISTANCE * _radius(mask) + 2
    ring = np.argwhere((outside >= distance) & (outside < distance + 1.5))
    if not len(ring):
        return []
    angles = np.arctan2(*(ring - np.argwhere(mask).mean(axis=0)).T)
    diagonals = np.pi / 4 + np.arange(NEGATIVE_CLICKS) * np.pi / 2
    chosen = (int(np.abs((angles - diagonal + np.pi) % (2 * np.pi) - np.pi).argmin()) for diagonal in diagonals)
    return [(int(ring[point, 0]), int(ring[point, 1])) for point in chosen]
