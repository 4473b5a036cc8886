# SPDX-License-Identifier: Apache-2.0
"""The kind of an image, such as "CT, chest", by the distance of its features to the centre of each known kind.

Distances tell what is unlike anything known, which a linear classifier does not (Mahalanobis distance of features, Lee
et al., arXiv 1807.03888): an image that is far from every centre is of none of the kinds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kprism_model.network.config import KPrismConfig
from kprism_model.network.encoder import ImageFeatures

KIND_WIDTH = 64
"""Dimensions of the space in which distances are taken."""

POSSIBLE = "kind_head.possible"
"""The tensor of a network that tells which class can be in which kind; it has a row for each class."""


class KindHead(nn.Module):
    """Logits of K kinds and of "none of these" for the coarsest features of images.

    `possible` bool (classes, K + 1): whether a class can be in a kind of image. Its last column is for images of none
    of the kinds. It is true throughout for a class of which nothing is known.
    """

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.encoder_channels[0], KIND_WIDTH)
        self.centres = nn.Parameter(0.1 * torch.randn(len(config.kinds), KIND_WIDTH))
        self.none = nn.Parameter(torch.full((), -3.0))
        self.register_buffer("possible", torch.ones(config.num_classes, len(config.kinds) + 1, dtype=torch.bool))
        self.possible: Tensor

    @staticmethod
    def pooled(features: ImageFeatures) -> Tensor:
        """Mean of the coarsest features over the image: (B, channels).

        Their maximum would make distances to what is unlike them tell less (measured on dermoscopy).
        """
        return features.stride16.float().mean(dim=(2, 3))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, channels) -> logits (B, K + 1): half the negative squared distance to each centre, and `none`."""
        with torch.autocast(pooled.device.type, enabled=False):  # differences of large distances need all their bits
            placed = self.projection(pooled)
            distance = (placed[:, None] - self.centres).square().sum(dim=2)
            return torch.cat([-0.5 * distance, self.none.expand(len(pooled), 1)], dim=1)
