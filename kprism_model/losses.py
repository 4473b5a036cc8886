# SPDX-License-Identifier: Apache-2.0
"""Training losses: 5 Dice + 5 binary cross-entropy on every decoder layer (K-Prism, training section), and others.

These are MONAI's losses, written in torch alone for machines without MONAI, and with weights for rows.
tests/unit/test_losses.py shows that values and gradients are equal within 1e-5: `dice_loss` to DiceLoss(sigmoid=True,
soft_label=True, smooth_nr=1, smooth_dr=1), and one layer of `mask_loss` to 5 times that plus 5 times BCEWithLogitsLoss,
which on binary targets is DiceCELoss(sigmoid=True, smooth_nr=1, smooth_dr=1, lambda_dice=5, lambda_ce=5).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0, row_weight: Tensor | None = None) -> Tensor:
    """Mean over N of 1 - soft Dice of sigmoid(`logits`) and `target`, both (N, 1, h, w), target in [0, 1].

    With `row_weight` (N,) the mean is weighted; it is 0 if all weights are 0.

    The overlap is the sum of min(p, t). On a binary target that is the usual sum of p * t; on the soft targets of
    coarse layers it keeps the minimum at p = t, where the product would push p to 0 or 1 (Dice semimetric losses,
    arXiv 2303.16296). `smooth` pixels are added to numerator and denominator, so that an empty target has a loss.
    """
    _check_shapes(logits, target)
    probability, target = logits.sigmoid().flatten(1), target.flatten(1)
    overlap = torch.minimum(probability, target).sum(1)
    total = probability.sum(1) + target.sum(1)
    return _mean(1 - (2 * overlap + smooth) / (total + smooth), row_weight)


def mask_loss(
    logits: Sequence[Tensor],
    target: Tensor,
    *,
    dice_weight: float = 5.0,
    bce_weight: float = 5.0,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Weighted Dice + BCE, averaged over the decoder's layers.

    `logits`: one (N, 1, h, w) per layer, the last layer last; `target`: (N, 1, H, W) float in [0, 1]. The last layer is
    compared at full size (bilinear upsampling); the coarser layers at their own size with the area-averaged target.
    The paper upsamples every layer, which costs many times more. With `row_weight` (N,) the mean over N is weighted;
    it is 0 if all weights are 0. ValueError for an empty list, or a target or weights that do not fit the logits.
    """
    if not logits:
        raise ValueError("mask_loss needs the logits of at least one decoder layer; the list is empty")
    resized = F.interpolate(logits[-1], size=target.shape[-2:], mode="bilinear", align_corners=False)
    losses = [_layer_loss(resized, target, dice_weight, bce_weight, row_weight)]
    averaged: dict[torch.Size, Tensor] = {}
    for layer in logits[:-1]:
        size = layer.shape[-2:]
        if size not in averaged:
            averaged[size] = F.interpolate(target, size=size, mode="area")
        losses.append(_layer_loss(layer, averaged[size], dice_weight, bce_weight, row_weight))
    return torch.stack(losses).mean()


def full_size_mask_loss(
    logits: Sequence[Tensor], target: Tensor, *, dice_weight: float = 5.0, bce_weight: float = 5.0
) -> Tensor:
    """The published loss: weighted Dice + BCE of every layer at full size, summed over the decoder's layers.

    `logits`: one (N, 1, h, w) per layer; `target`: (N, 1, H, W) float of 0 and 1. Unlike in `mask_loss`, every layer is
    enlarged (bilinear). ValueError for an empty list, or a target that does not fit the logits.
    """
    if not logits:
        raise ValueError("full_size_mask_loss needs the logits of at least one decoder layer; the list is empty")
    losses = []
    for layer in logits:
        resized = F.interpolate(layer, size=target.shape[-2:], mode="bilinear", align_corners=False)
        losses.append(_layer_loss(resized, target, dice_weight, bce_weight, None))
    return torch.stack(losses).sum()


def presence_loss(logits: Tensor, present: Tensor, *, row_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the presence logits (N,) with `present` (N,): whether the structure is in the image.

    With `row_weight` (N,) the mean over N is weighted; it is 0 if all weights are 0.
    """
    _check_shapes(logits, present)
    if row_weight is None:
        return F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype))
    return _mean(F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype), reduction="none"), row_weight)


def kind_loss(logits: Tensor, kinds: Sequence[str], known: Sequence[str]) -> Tensor:
    """Cross-entropy of logits (N, K + 1) with the kind of each image, by its index among the K `known` kinds.

    An empty kind means none of them, the last logit. Images of another kind do not count.
    """
    indices = {"": len(known), **{name: index for index, name in enumerate(known)}}
    targets = [indices.get(kind, -1) for kind in kinds]
    if max(targets, default=-1) < 0:
        return 0.0 * logits.sum()
    return F.cross_entropy(logits, torch.tensor(targets, device=logits.device), ignore_index=-1)


def _layer_loss(
    logits: Tensor, target: Tensor, dice_weight: float, bce_weight: float, row_weight: Tensor | None
) -> Tensor:
    _check_shapes(logits, target)
    if row_weight is None:
        bce = F.binary_cross_entropy_with_logits(logits, target)
    else:
        pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        bce = _mean(pixels.flatten(1).mean(1), row_weight)
    return dice_weight * dice_loss(logits, target, row_weight=row_weight) + bce_weight * bce


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of `values` (N,), weighted with `weight` (N,) if there is one; 0 if all weights are 0."""
    if weight is None:
        return values.mean()
    if weight.shape != values.shape:
        raise ValueError(f"row_weight must have shape {tuple(values.shape)}, not {tuple(weight.shape)}")
    return (values * weight).sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


def _check_shapes(logits: Tensor, target: Tensor) -> None:
    if logits.shape != target.shape:
        raise ValueError(f"logits and target must have one shape, not {tuple(logits.shape)} and {tuple(target.shape)}")
