# SPDX-License-Identifier: Apache-2.0
"""Thin structures in an image, such as vessels, membranes and fibres, by the curvature of its grey values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_CONNECTED = np.ones((3, 3), dtype=bool)
_LONG = 12.0  # pixels of a thin structure, at least, over the square of its width


def ridges(grey: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Lines that are brighter, or darker, than what lies beside them, at a random width; bool (H, W).

    grey: (H, W) of any unit. The ridge measure is that of Frangi's vessel filter (MICCAI 1998) in its simplest form:
    the larger eigenvalue of the Hessian less the smaller one, where the larger one has the right sign. What is strong,
    and what is connected to it and half as strong, is kept where it is long.
    """
    sigma = float(np.exp(rng.uniform(np.log(0.9), np.log(3.0))))
    strength = _ridge_strength(grey if rng.random() < 0.5 else -grey, sigma)
    strong = float(np.quantile(strength, rng.uniform(0.92, 0.98)))
    components, count = ndimage.label(strength > strong / 2, _CONNECTED)
    peaks = np.zeros(count + 1, dtype=bool)
    peaks[components[strength > strong]] = True
    peaks &= np.bincount(components.ravel(), minlength=count + 1) >= _LONG * sigma**2
    peaks[0] = False
    kept: NDArray[np.bool_] = peaks[components]
    return kept


def _ridge_strength(grey: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """How much each pixel lies on a dark line: (H, W), 0 or more."""
    smooth = ndimage.gaussian_filter(grey, sigma, mode="nearest", truncate=3)
    down, right = np.gradient(smooth)
    down_down, down_right = np.gradient(down)
    right_right = np.gradient(right, axis=1)
    middle, root = (down_down + right_right) / 2, np.hypot((down_down - right_right) / 2, down_right)
    # The eigenvalues are middle + root and middle - root: a dark line has a large and positive one beside one near 0.
    # Beside the edge of a large thing the curvature is as large, but so is the slope over the width.
    slope = np.hypot(down, right) / sigma
    strength: NDArray[np.float32] = np.maximum(middle + root - np.abs(middle - root) - slope, 0)
    return strength
