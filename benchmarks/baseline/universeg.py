# SPDX-License-Identifier: Apache-2.0
"""The UniverSeg design (arXiv 2304.06131): a U-Net whose blocks let a query image and labelled examples meet.

Written from the paper, with colour images and a narrower default, to train on two cores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossConv(nn.Module):
    """A convolution of every pair (query, example), on their concatenated channels.

    A convolution is linear in its input channels, so the query's part is computed once and not once an example.
    """

    def __init__(self, query_channels: int, support_channels: int, out_channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(query_channels, out_channels, 3, padding=1)
        self.support = nn.Conv2d(support_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """Query (B, C, H, W) and examples (B, S, D, H, W) -> (B, S, out, H, W)."""
        pairs = self.support(support.flatten(0, 1)).unflatten(0, support.shape[:2])
        combined: Tensor = pairs + self.query(query)[:, None]
        return combined


class CrossBlock(nn.Module):
    """Query and examples meet; the query goes on with the mean over examples, each example with its own pair.

    After the `last` block nobody reads the examples.
    """

    def __init__(self, in_channels: tuple[int, int], width: int, *, last: bool = False) -> None:
        super().__init__()
        self.cross = CrossConv(*in_channels, width)
        self.query = nn.Conv2d(width, width, 3, padding=1)
        self.support = None if last else nn.Conv2d(width, width, 3, padding=1)

    def forward(self, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, S, D, H, W) -> (B, width, H, W), (B, S, width, H, W); the last block leaves the pairs."""
        pairs = F.leaky_relu(self.cross(query, support))
        new_query = F.leaky_relu(self.query(pairs.mean(1)))
        if self.support is None:
            return new_query, pairs
        new_support = F.leaky_relu(self.support(pairs.flatten(0, 1))).unflatten(0, pairs.shape[:2])
        return new_query, new_support


class UniverSeg(nn.Module):
    """Encoder and decoder of `levels` blocks of `width` channels; the paper has five of 64."""

    def __init__(self, width: int = 32, levels: int = 5) -> None:
        super().__init__()
        self.down = nn.ModuleList(CrossBlock((width, width) if level else (3, 4), width) for level in range(levels))
        self.up = nn.ModuleList(
            CrossBlock((2 * width, 2 * width), width, last=level == 1) for level in range(levels - 1, 0, -1)
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor, support_images: Tensor, support_masks: Tensor) -> Tensor:
        """Images (B, 3, H, W), examples (B, S, 3, H, W) with masks (B, S, 1, H, W) of 0 and 1 -> logits (B, 1, H, W).

        H and W must be multiples of 2 to the power of (levels - 1).
        """
        query, support = images, torch.cat([support_images, support_masks], dim=2)
        kept: list[tuple[Tensor, Tensor]] = []
        for level, block in enumerate(self.down):
            if level:
                query, support = F.max_pool2d(query, 2), _by_example(support, _halve)
            query, support = block(query, support)
            kept.append((query, support))
        for block, (query_skip, support_skip) in zip(self.up, reversed(kept[:-1]), strict=True):
            query = torch.cat([_double(query), query_skip], dim=1)
            support = torch.cat([_by_example(support, _double), support_skip], dim=2)
            query, support = block(query, support)
        logits: Tensor = self.head(query)
        return logits


def _halve(maps: Tensor) -> Tensor:
    return F.max_pool2d(maps, 2)


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


def _by_example(support: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of (N, C, H, W) on examples (B, S, C, H, W)."""
    changed: Tensor = function(support.flatten(0, 1))
    return torch.unflatten(changed, 0, support.shape[:2])
