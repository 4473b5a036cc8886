# SPDX-License-Identifier: Apache-2.0
"""Thin structures in an image, such as vessels, membranes and fibres, by the curvature of its grey values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED

_STRONGEST = 0.998  # the quantile that stands for the strongest line: a line across an image has 0.4 % of its pixels
_OFF_MIDDLE = 0.67  # pixels: a little more than the middle of a line is away from the nearest pixel
_LONG = 6.0  # pixels in the middle of a thin structure, at least, over the square of its width


def ridges(grey: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Lines that are brighter, or darker, than what lies beside them, at a random width; bool (H, W).

    grey: (H, W) of any unit. The ridge measure is that of Frangi's vessel filter (MICCAI 1998) in its simplest form:
    the larger eigenvalue of the Hessian less the smaller one, where the larger one has the right sign. What is strong,
    and what is connected to it and a third as strong, is kept where it is long, at its full width.
    """
    sigma = float(np.exp(rng.uniform(np.log(0.9), np.log(3.0))))
    both = [_ridge_strength(image, sigma) for image in (grey, -grey)]
    peaks = np.array([np.quantile(middle, _STRONGEST) for _, middle in both])
    if not peaks.any():
        return np.zeros(grey.shape, dtype=bool)
    # Beside a bright line lie two weak dark ones, which are seldom meant.
    chosen = rng.choice(2, p=peaks**4 / (peaks**4).sum())
    curvature, middle = both[chosen]
    strong = float(peaks[chosen]) * rng.uniform(0.2, 0.6)
    components, count = ndimage.label(middle > strong / 3, EIGHT_CONNECTED)
    kept = np.zeros(count + 1, dtype=bool)
    kept[components[middle > strong]] = True
    kept &= np.bincount(components.ravel(), minlength=count + 1) >= _LONG * sigma**2
    kept[0] = False
    near = ndimage.maximum_filter(kept[components], 2 * round(sigma) + 1)
    found: NDArray[np.bool_] = near & (curvature > strong / 3)
    return found


def _ridge_strength(grey: NDArray[np.float32], sigma: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much each pixel lies on a dark line, and how much in the middle of one: two (H, W), 0 or more."""
    smooth = ndimage.gaussian_filter(grey, sigma, mode="nearest", truncate=3)
    down, right = np.gradient(smooth)
    down_down, down_right = np.gradient(down)
    right_right = np.gradient(right, axis=1)
    mean, root = (down_down + right_right) / 2, np.hypot((down_down - right_right) / 2, down_right)
    # The eigenvalues are mean + root and mean - root: a dark line has a large and positive one beside one near 0.
    curvature: NDArray[np.float32] = np.maximum(mean + root - np.abs(mean - root), 0)
    # The slope over the curvature is the distance from the middle; it is large all along the edge of a large thing.
    middle: NDArray[np.float32] = np.maximum(curvature - np.hypot(down, right) / _OFF_MIDDLE, 0)
    return curvature, middle
