# SPDX-License-Identifier: Apache-2.0
"""The simulated user's next clicks on a batch of masks, computed on the masks' device.

The rule is that of `clicks`, which is used for evaluation and for training on a CPU. This version is for training on a
GPU, where copying every mask to the host would cost more than the network. It never waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kprism_model.interaction.batched_regions import (
    central_pixel,
    drawn_pixel,
    largest_component,
    positions,
    squared_distance,
)

_JITTER_DEPTH = 0.5  # jittered clicks stay at least this share of the greatest depth away from the region's edge


def next_clicks(predictions: Tensor, targets: Tensor, chance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The next click on each of `predictions` (N, H, W) given the true masks `targets` (N, H, W), both boolean.

    Returns points (N, 2) float32 and labels (N,) int64: 1 positive, 0 negative, -1 (at point (-1, -1)) if there is no
    error. Without `chance` the click is on the deepest pixel of the largest 8-connected error region, always at full
    resolution. With `chance` (N,), uniform in [0, 1), it is drawn from the region's inner part. ValueError if the
    shapes differ.
    """
    if predictions.ndim != 3 or predictions.shape != targets.shape:
        raise ValueError(
            f"expected masks (N, H, W) of one shape, not {tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    regions, sizes = largest_component(torch.cat([targets & ~predictions, predictions & ~targets]))
    (missed, spurious), (size_missed, size_spurious) = regions.chunk(2), sizes.chunk(2)
    positive = size_missed >= size_spurious
    region = torch.where(positive[:, None, None], missed, spurious)
    numbers = _inner_pixels(region, chance)
    has_error = torch.maximum(size_missed, size_spurious) > 0
    points = torch.where(has_error[:, None], positions(numbers, targets.shape[-1]), -1.0)
    return points, torch.where(has_error, positive.long(), -1)


def _inner_pixels(regions: Tensor, chance: Tensor | None) -> Tensor:
    """The number of the deepest pixel of each region (N, H, W), or of one drawn from its inner part."""
    depth = squared_distance(regions, border=True)
    deepest = depth.amax((1, 2), keepdim=True)
    if chance is None:
        return central_pixel(regions & (depth == deepest))
    inner = regions & (depth >= _JITTER_DEPTH**2 * deepest)
    return drawn_pixel(inner, chance[:, None])[:, 0]
