# SPDX-License-Identifier: Apache-2.0
"""Training masks for propagation: the mask of "the slice before", made from the true mask of any image.

The true mask is moved, rotated, scaled and made thicker or thinner by as much as neighbouring slices differ. The
prompts are those of `kprism_model.volumes.propagation`: references, clicks that describe the propagated mask, and the
mask itself as previous mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kprism_model.network.prompts import PADDING
from kprism_model.volumes.shapes import propagation_clicks

BoolArray = NDArray[np.bool_]


class MotionLimits(NamedTuple):
    """The largest change of a mask, in both directions.

    `turn` in degrees; `scale` in the logarithm, separately for rows and columns; `move` and `thickness` in radii of a
    disc with the same area.
    """

    turn: float
    scale: float
    move: float
    thickness: float


SLICE_TO_SLICE_MOTION = MotionLimits(10.0, 0.2, 0.25, 0.2)
"""The difference between neighbouring slices of a volume."""

LARGE_MOTION = MotionLimits(40.0, 0.5, 1.0, 0.5)
"""The difference between a bad initial mask and the truth."""


class PropagatedMasks(NamedTuple):
    """Propagated masks for N rows.

    `masks` (N, 1, H, W) float32 of 0 and 1; `points` (N, K, 2) as (row, column) that describe them, with `labels`
    (N, K): 1 positive, 0 negative, -1 padding.
    """

    masks: Tensor
    points: Tensor
    labels: Tensor


def propagated_masks(masks: Tensor, rng: np.random.Generator) -> PropagatedMasks:
    """Simulated masks of the slice before, from the true masks (N, 1, H, W) of this slice; none may be empty."""
    before = [moved_mask(mask, rng) for mask in (masks[:, 0] > 0.5).cpu().numpy()]
    clicks = [propagation_clicks(mask) for mask in before]
    points = torch.zeros(len(clicks), max(map(len, clicks)), 2)
    labels = torch.full(points.shape[:2], PADDING)
    for row, made in enumerate(clicks):
        points[row, : len(made)] = torch.tensor([(click.row, click.column) for click in made])
        labels[row, : len(made)] = torch.tensor([int(click.positive) for click in made])
    previous = torch.from_numpy(np.stack(before)[:, None].astype(np.float32))
    return PropagatedMasks(*(part.to(masks.device) for part in (previous, points, labels)))


def moved_mask(mask: BoolArray, rng: np.random.Generator, limits: MotionLimits = SLICE_TO_SLICE_MOTION) -> BoolArray:
    """A mask (H, W), randomly changed within `limits`; a mask that would become empty is returned unchanged."""
    radius = np.sqrt(np.count_nonzero(mask) / np.pi)
    centre = np.argwhere(mask).mean(axis=0)
    angle = np.deg2rad(rng.uniform(-limits.turn, limits.turn))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag(np.exp(rng.uniform(-limits.scale, limits.scale, 2)))
    back = turn @ stretch  # from the new mask's pixels to the old one's
    goal = centre + radius * rng.uniform(-limits.move, limits.move, 2)
    signed = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    moved = ndimage.affine_transform(signed, back, centre - back @ goal, order=1, mode="nearest")
    result: BoolArray = moved > radius * rng.uniform(-limits.thickness, limits.thickness)
    return result if result.any() else mask
