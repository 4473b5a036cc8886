# SPDX-License-Identifier: Apache-2.0
"""Thin structures in an image, such as vessels, membranes and fibres, by the curvature of its grey values.

scikit-image has Frangi's filter and hysteresis thresholds, but it is not among the requirements; this is SciPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED

_PEAK_QUANTILE = 0.998  # stands for the strongest line: a line across an image has 0.4 % of its pixels
_CENTRE_TOLERANCE = 0.67  # pixels: a little more than the distance of a line's centre from the nearest pixel
_MINIMUM_LENGTH = 6.0  # pixels along the centre of a thin structure, divided by the square of its width


def ridges(grey: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Lines that are brighter, or darker, than the pixels beside them, at a random width; bool (H, W).

    grey: (H, W) in any unit. The ridge measure is that of Frangi's vessel filter (MICCAI 1998) in its simplest form:
    the larger eigenvalue of the Hessian minus the smaller one, if the larger one has the right sign. A hysteresis
    threshold keeps strong pixels, and connected pixels that are at least a third as strong. Short lines are dropped;
    the others are returned at their full width.
    """
    sigma = float(np.exp(rng.uniform(np.log(0.9), np.log(3.0))))
    both = [_ridge_strength(image, sigma) for image in (grey, -grey)]
    peaks = np.array([np.quantile(centre, _PEAK_QUANTILE) for _, centre in both])
    if not peaks.any():
        return np.zeros(grey.shape, dtype=bool)
    # Beside a bright line are two weak dark ones, which are rarely of interest.
    chosen = rng.choice(2, p=peaks**4 / (peaks**4).sum())
    curvature, centre = both[chosen]
    strong = float(peaks[chosen]) * rng.uniform(0.2, 0.6)
    components, count = ndimage.label(centre > strong / 3, EIGHT_CONNECTED)
    kept = np.zeros(count + 1, dtype=bool)
    kept[components[centre > strong]] = True
    kept &= np.bincount(components.ravel(), minlength=count + 1) >= _MINIMUM_LENGTH * sigma**2
    kept[0] = False
    near = ndimage.maximum_filter(kept[components], 2 * round(sigma) + 1)
    lines: NDArray[np.bool_] = near & (curvature > strong / 3)
    return lines


def _ridge_strength(grey: NDArray[np.float32], sigma: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How much each pixel lies on a dark line, and how much on the centre of one: two (H, W), 0 or more."""
    smooth = ndimage.gaussian_filter(grey, sigma, mode="nearest", truncate=3)
    down, right = np.gradient(smooth)
    down_down, down_right = np.gradient(down)
    right_right = np.gradient(right, axis=1)
    mean, root = (down_down + right_right) / 2, np.hypot((down_down - right_right) / 2, down_right)
    # The eigenvalues are mean + root and mean - root. On a dark line one is large and positive, the other near 0.
    curvature: NDArray[np.float32] = np.maximum(mean + root - np.abs(mean - root), 0)
    # Slope divided by curvature is the distance from the centre; it is large along the edge of a large structure.
    centre: NDArray[np.float32] = np.maximum(curvature - np.hypot(down, right) / _CENTRE_TOLERANCE, 0)
    return curvature, centre
