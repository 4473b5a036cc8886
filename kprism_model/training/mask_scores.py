# SPDX-License-Identifier: Apache-2.0
"""Mask probabilities and Dice during training, on the masks' device and without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_probability(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, 1, h, w) -> probabilities (N, 1, height, width) at `size`, in float32 and without gradient."""
    resized = F.interpolate(logits.detach().float(), size, mode="bilinear", align_corners=False)
    return resized.sigmoid()


def row_dice(probability: Tensor, masks: Tensor) -> Tensor:
    """Dice (N,) of thresholded probabilities and masks, both (N, 1, H, W); 0 where both are empty."""
    predicted, target = (probability > 0.5).flatten(1), (masks > 0.5).flatten(1)
    return 2 * (predicted & target).sum(1) / (predicted.sum(1) + target.sum(1)).clamp(min=1)


def mean_dice(probability: Tensor, masks: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean Dice over rows of positive `weight` (N,) (default: all) with an object; NaN if there is none."""
    shown = (masks > 0.5).flatten(1).any(1)
    counted = shown if weight is None else shown & (weight > 0)
    return torch.where(counted, row_dice(probability, masks), torch.nan).nanmean()
