# SPDX-License-Identifier: Apache-2.0
"""References: object summaries and the space-time-memory readout of labelled images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.network.config import KPrismConfig
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.position import summary_encoding


class References(NamedTuple):
    """R encoded references for each of B rows.

    `summaries`: for strides 16, 8 and 4, (B, R, S, C) object summaries, the first half of S of the object, the second
    half of its surroundings; `keys` (B, R, Ck, h, w): image features at stride 16; `values` (B, R, Cv, h, w): features
    of image and mask at stride 16.
    """

    summaries: tuple[Tensor, Tensor, Tensor]
    keys: Tensor
    values: Tensor

    def expand(self, rows: int) -> References:
        """The same references for `rows` rows, without a copy; B must be 1 or `rows`."""
        return References(
            tuple(s.expand(rows, *s.shape[1:]) for s in self.summaries),  # type: ignore[arg-type]
            self.keys.expand(rows, *self.keys.shape[1:]),
            self.values.expand(rows, *self.values.shape[1:]),
        )

    def select(self, rows: Tensor) -> References:
        """The references of the rows numbered `rows`."""
        return References(
            tuple(s[rows] for s in self.summaries),  # type: ignore[arg-type]
            self.keys[rows],
            self.values[rows],
        )

    def gather(self, index: Tensor) -> References:
        """R references for each of N rows: `index` (N, R) selects from B rows of one reference each."""
        return References(
            tuple(s[:, 0][index] for s in self.summaries),  # type: ignore[arg-type]
            self.keys[:, 0][index],
            self.values[:, 0][index],
        )


class ObjectSummarizer(nn.Module):
    """Pools the features of a reference into S vectors at each scale: half of its object, half of its surroundings."""

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        self.summaries = config.summaries
        width = config.width
        self.project = nn.ModuleList(nn.Linear(channels, width) for channels in config.encoder_channels)
        self.features = nn.ModuleList(self._mlp(width, width) for _ in self.project)
        self.weights = nn.ModuleList(self._mlp(width, config.summaries) for _ in self.project)

    @staticmethod
    def _mlp(width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, features: ImageFeatures, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mask-encoder features of B references and masks (B, 1, H, W) -> three (B, S, C) summaries."""
        scales = (self._summarize(level, scale, masks) for level, scale in enumerate(features))
        return next(scales), next(scales), next(scales)

    def _summarize(self, level: int, feature: Tensor, masks: Tensor) -> Tensor:
        height, width = feature.shape[-2:]
        inside = F.interpolate(masks, (height, width), mode="area").permute(0, 2, 3, 1)
        half = self.summaries // 2
        region = torch.cat([inside.expand(-1, -1, -1, half), (1 - inside).expand(-1, -1, -1, half)], dim=-1)
        value = self.project[level](feature.permute(0, 2, 3, 1))
        value = value + summary_encoding(height, width, value.shape[-1], device=value.device)
        weights = self.weights[level](value).sigmoid() * region
        sums = torch.einsum("bhws,bhwc->bsc", weights, self.features[level](value))
        summaries: Tensor = sums / (weights.sum((1, 2))[..., None] + 1e-4)
        return summaries


def read_references(query: Tensor, references: References) -> Tensor:
    """Read the references' values at every query pixel, by negative squared L2 affinity (STCN, arXiv 2106.05210).

    `query` (N, Ck, h, w) are image features at stride 16; returns (N, Cv, h, w). The softmax runs over all pixels of
    all references.
    """
    rows, channels, height, width = query.shape
    keys = references.keys.transpose(1, 2).flatten(2)
    values = references.values.transpose(1, 2).flatten(2)
    # |k - q|^2 without |q|^2, which cancels in the softmax over k.
    affinity = (2 * query.flatten(2).transpose(1, 2) @ keys - keys.square().sum(1, keepdim=True)) / channels**0.5
    read: Tensor = values @ affinity.softmax(-1).transpose(1, 2)
    return read.reshape(rows, -1, height, width)
