# SPDX-License-Identifier: Apache-2.0
"""Scribbles as prompts: an int8 map (row, column) of 1 inside the object, -1 outside of it, 0 where nothing is drawn.

A scribble is drawn into the dense map, and a few of its points become click tokens. Training and prediction choose
these points in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SCRIBBLE_POINTS = 4
"""Scribbles give at most this many click tokens of each sign."""


def check_scribbles(scribbles: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int8]:
    """The scribbles as int8; ValueError unless they have the image's `size` and hold only -1, 0 and 1."""
    scribbles = np.asarray(scribbles)
    if scribbles.shape != size:
        raise ValueError(f"scribbles have shape {scribbles.shape}, but the image has shape {size}")
    if not np.isin(scribbles, (-1, 0, 1)).all():
        raise ValueError(f"scribbles must hold -1, 0 and 1, got values {np.unique(scribbles)[:5].tolist()}")
    return scribbles.astype(np.int8)


def scribble_points(scribbles: NDArray[np.int8]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A few points of each sign, by farthest-point sampling that starts at the pixel nearest to the strokes' centre.

    Returns points (K, 2) as (row, column) and labels (K,): 1 positive, 0 negative; at most `SCRIBBLE_POINTS` a sign.
    """
    points: list[NDArray[np.float64]] = [np.zeros((0, 2))]
    labels: list[int] = []
    for sign, label in ((1, 1), (-1, 0)):
        pixels = np.argwhere(scribbles == sign).astype(np.float64)
        if not len(pixels):
            continue
        distance = np.hypot(*(pixels - pixels.mean(0)).T)
        chosen = [int(distance.argmin())]
        nearest = np.full(len(pixels), np.inf)
        while len(chosen) < min(SCRIBBLE_POINTS, len(pixels)):
            nearest = np.minimum(nearest, np.hypot(*(pixels - pixels[chosen[-1]]).T))
            chosen.append(int(nearest.argmax()))
        points.append(pixels[chosen])
        labels += [label] * len(chosen)
    return np.concatenate(points), np.array(labels, dtype=np.int64)
