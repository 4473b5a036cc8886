# SPDX-License-Identifier: Apache-2.0
"""Training masks for propagation: the mask of "the slice before", made from the true mask of any image.

The true mask is moved, rotated, scaled and made thicker or thinner by as much as neighbouring slices differ. The
prompts are those of `kprism_model.volumes.propagation`: references, and the mask as previous mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

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


def propagated_masks(masks: Tensor, rng: np.random.Generator) -> Tensor:
    """Simulated masks of the slice before, from the true masks (N, 1, H, W) of this slice; an empty one stays empty."""
    before = [moved_mask(mask, rng) if mask.any() else mask for mask in (masks[:, 0] > 0.5).cpu().numpy()]
    return torch.from_numpy(np.stack(before)[:, None].astype(np.float32)).to(masks.device)


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
