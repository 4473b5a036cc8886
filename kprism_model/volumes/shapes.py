# SPDX-License-Identifier: Apache-2.0
"""Geometry of masks (row, column): points that stand for a mask, its surroundings, and the shape between two masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.queries import Click

BoolArray = NDArray[np.bool_]

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
PARTS = 3  # of a mask in several parts, the largest so many are carried on
SMALL_PART = 0.1  # and of those only parts of at least this share of the largest
AROUND = 4  # clicks beside a mask, one in each quarter
BESIDE = 0.6  # they lie so many radii of the mask away from its outline, and two pixels more


def carried_clicks(mask: BoolArray) -> tuple[Click, ...]:
    """Clicks that say of the next slice what a mask says of this one: inside of each larger part, and around all.

    A click inside is at the deepest pixel of its part; those around lie in each quarter seen from the mask's centre,
    as far as the image goes.
    """
    top, left, box = _crop(mask, margin=int(BESIDE * _radius(mask)) + 5)
    depth = ndimage.distance_transform_edt(np.pad(box, 1))[1:-1, 1:-1]
    parts, count = ndimage.label(box, _EIGHT_CONNECTED)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[:PARTS]
    clicks = []
    for part in largest:
        if sizes[part] >= SMALL_PART * sizes[largest[0]]:
            row, column = np.unravel_index(np.where(parts == part + 1, depth, 0).argmax(), box.shape)
            clicks.append(Click(float(top + row), float(left + column), True))
    clicks += [Click(float(top + row), float(left + column), False) for row, column in _around(box)]
    return tuple(clicks)


def confine(probability: NDArray[np.float32], mask: BoolArray, reach: float) -> NDArray[np.float32]:
    """Keep the parts of a map that grow out of `mask`, the structure on the slice before, and zero elsewhere.

    `reach` is how many pixels they may go beyond it.
    """
    top, left, box = _crop(mask, margin=int(reach) + 2)
    window = (slice(top, top + box.shape[0]), slice(left, left + box.shape[1]))
    near = ndimage.distance_transform_edt(~box) <= reach
    parts, _ = ndimage.label((probability[window] >= 0.5) & near, _EIGHT_CONNECTED)
    others = np.isin(parts, np.setdiff1d(np.unique(parts), np.unique(parts[box])))
    kept = np.zeros_like(probability)
    kept[window] = np.where(near & ~(others & (parts > 0)), probability[window], 0)
    return kept


def between(one: BoolArray, other: BoolArray, shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Masks between two masks that are not empty, as shape-based interpolation (Raya and Udupa 1990) draws them.

    `shares` (n,) say how far each is from `one` (0) to `other` (1). The masks' centres move on a straight line, and
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
    """Distance to the outline in pixels, positive inside; half a pixel beside it."""
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    distance: NDArray[np.float64] = np.where(mask, inside - 0.5, 0.5 - outside)
    return distance


def _radius(mask: BoolArray) -> float:
    """The radius of a disc of the same area."""
    return float(np.sqrt(np.count_nonzero(mask) / np.pi))


def _crop(mask: BoolArray, margin: int) -> tuple[int, int, BoolArray]:
    """The first row and column of the mask's box with a margin, and the mask in there."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    return top, left, mask[top : int(rows[-1]) + margin + 1, left : int(columns[-1]) + margin + 1]


def _around(mask: BoolArray) -> list[tuple[int, int]]:
    """Pixels beside a mask, the one nearest to the diagonal of each quarter."""
    outside = ndimage.distance_transform_edt(~mask)
    away = BESIDE * _radius(mask) + 2
    ring = np.argwhere((outside >= away) & (outside < away + 1.5))
    if not len(ring):
        return []
    angles = np.arctan2(*(ring - np.argwhere(mask).mean(axis=0)).T)
    diagonals = np.pi / 4 + np.arange(AROUND) * np.pi / 2
    chosen = (int(np.abs((angles - diagonal + np.pi) % (2 * np.pi) - np.pi).argmin()) for diagonal in diagonals)
    return [(int(ring[point, 0]), int(ring[point, 1])) for point in chosen]
