# SPDX-License-Identifier: Apache-2.0
"""Segmentation metrics: Dice, the 95th-percentile Hausdorff distance, and the number of clicks to reach a Dice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BoolArray = NDArray[np.bool_]


def dice(prediction: BoolArray, target: BoolArray, *, empty: float = 1.0) -> float:
    """Dice coefficient of two masks of one shape, in any number of dimensions; `empty` where both are empty."""
    prediction, target = _as_masks(prediction, target)
    total = np.count_nonzero(prediction) + np.count_nonzero(target)
    return empty if total == 0 else 2 * np.count_nonzero(prediction & target) / total


def hd95(prediction: BoolArray, target: BoolArray, spacing: Sequence[float]) -> float:
    """95th-percentile Hausdorff distance in the unit of `spacing` (one value per axis); nan where a mask is empty.

    The greater of the two directed 95th percentiles of distances between surfaces, as in Metrics Reloaded
    (arXiv 2206.01653) and MONAI. A surface is the mask's pixels with a face-connected neighbour outside it; beyond the
    image is outside.
    """
    prediction, target = _as_masks(prediction, target)
    if len(spacing) != prediction.ndim or not all(np.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(f"spacing must be {prediction.ndim} positive numbers, not {tuple(spacing)}")
    if not prediction.any() or not target.any():
        return float("nan")
    box = _bounding_box(prediction | target)
    surfaces = [_surface(mask[box]) for mask in (prediction, target)]
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    directed = (distances[1][surfaces[0]], distances[0][surfaces[1]])
    return float(max(np.percentile(values, 95) for values in directed))


def clicks_to_reach(scores: Sequence[float], threshold: float, limit: int = 20) -> int:
    """Number of clicks (NoC) after which the score first is at least `threshold`; scores[k] follows click k + 1.

    `limit` where it never is within `limit` clicks: failures count as `limit`, so give their share beside the mean.
    """
    for clicks, score in enumerate(scores[:limit], start=1):
        if score >= threshold:
            return clicks
    return limit


def _as_masks(prediction: BoolArray, target: BoolArray) -> tuple[BoolArray, BoolArray]:
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.shape != target.shape:
        raise ValueError(f"prediction and target must have one shape, not {prediction.shape} and {target.shape}")
    return prediction, target


def _bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    box: tuple[slice, ...] = ndimage.find_objects(mask.astype(np.uint8))[0]
    return box


def _surface(mask: BoolArray) -> BoolArray:
    surface: BoolArray = mask & ~ndimage.binary_erosion(mask)
    return surface
