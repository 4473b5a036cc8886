# SPDX-License-Identifier: Apache-2.0
"""The kind of an image, such as "CT, chest", by the distance of its features to the centres of known kinds.

Unlike a linear classifier, distances recognise images that are unlike all known ones (Mahalanobis distance of features,
Lee et al., arXiv 1807.03888): an image that is far from every centre is of none of the kinds. A kind may have several
centres, because images of one kind look different in each hospital.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kprism_model.network.config import KPrismConfig
from kprism_model.network.encoder import ImageFeatures

KIND_WIDTH = 256
"""Dimensions of the space in which distances are measured, or fewer if the features have fewer."""

POSSIBLE = "kind_head.possible"
"""Name of the tensor that says which class can be in which kind; it has a row for each class."""


class KindHead(nn.Module):
    """Logits of K kinds and of "none of these" for the coarsest features of images.

    `possible` bool (classes, K + 1): whether a class can be in a kind of image. The last column is for images of none
    of the kinds. A class without this information is possible everywhere.
    """

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        width = min(KIND_WIDTH, config.encoder_channels[0])
        self.counts = list(config.kind_centres or [1] * len(config.kinds))
        self.projection = nn.Linear(config.encoder_channels[0], width)
        self.centres = nn.Parameter(0.1 * torch.randn(sum(self.counts), width))
        self.none = nn.Parameter(torch.full((), -3.0))
        self.register_buffer("possible", torch.ones(config.num_classes, len(config.kinds) + 1, dtype=torch.bool))
        self.possible: Tensor

    @staticmethod
    def pooled(features: ImageFeatures) -> Tensor:
        """Mean of the coarsest features over the image: (B, channels).

        With the maximum, distances separate unknown images less well (measured on dermoscopy).
        """
        return features.stride16.float().mean(dim=(2, 3))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, channels) -> logits (B, K + 1), the last of them `none`; see `kind_logits`."""
        with torch.autocast(pooled.device.type, enabled=False):  # differences of large distances need full precision
            placed = self.projection(pooled)
            distances = 0.5 * (placed[:, None] - self.centres).square().sum(dim=2)
            return kind_logits(distances, self.counts, self.none)


def kind_logits(distances: Tensor, counts: Sequence[int], none: Tensor) -> Tensor:
    """Logits (B, K + 1) of K kinds and `none` (): each kind is a mixture of normal distributions with one covariance.

    `distances` (B, C) are half the squared distances to centres; `counts` says how many of the C belong to each kind.
    """
    kinds = [part.logsumexp(dim=1) for part in (-distances).split(list(counts), dim=1)]
    return torch.stack([*kinds, none.expand(len(distances))], dim=1)
