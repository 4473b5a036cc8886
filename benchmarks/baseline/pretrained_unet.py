# SPDX-License-Identifier: Apache-2.0
"""A specialist that starts from the same trained eye: a 2-D U-Net on the image encoder of a K-Prism checkpoint.

Decoder, deep supervision and loss follow nnU-Net (Isensee et al., Nature Methods 2021). The encoder is the EfficientNet
trunk of the checkpoint and is trained on, with a smaller learning rate.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baseline.games import LabelBatch
from kprism_model.network.efficientnet import EfficientNetLiteEncoder, pad_same

SKIPS = (0, 1, 2, 4, 6)
"""Stages of the trunk whose outputs are used: strides 2, 4, 8, 16 and 32."""

WIDTHS = (16, 32, 48, 64, 128)
"""Channels of the decoder at strides 1, 2, 4, 8 and 16."""

SUPERVISED = 3
"""The finest scales of the decoder that are supervised: strides 1, 2 and 4, each with half the weight of the finer."""


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution, instance norm and leaky ReLU, twice, as in nnU-Net."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(out_channels, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


class UpBlock(nn.Module):
    """Doubles the size by a transposed convolution, then two convolutions on the result beside the skip connection."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, 2, bias=False)
        self.convolutions = conv_block(out_channels + skip_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in, H, W) and (B, skip, 2 H, 2 W) -> (B, out, 2 H, 2 W)."""
        out: Tensor = self.convolutions(torch.cat([self.up(x), skip], dim=1))
        return out


class PretrainedUNet(nn.Module):
    """A U-Net whose encoder is a copy of an image encoder's trunk, with `out_channels` logits, background first."""

    def __init__(self, encoder: EfficientNetLiteEncoder, out_channels: int) -> None:
        super().__init__()
        self.stem, self.stages = copy.deepcopy(encoder.stem), copy.deepcopy(encoder.stages)
        self.full = conv_block(3, WIDTHS[0])  # the trunk has nothing at stride 1
        skips = (WIDTHS[0], *(_channels(self.stages[stage]) for stage in SKIPS))
        inputs = (*WIDTHS[1:], skips[-1])
        self.up = nn.ModuleList(
            UpBlock(narrow, skip, width) for narrow, skip, width in zip(inputs, skips[:-1], WIDTHS, strict=True)
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in WIDTHS[:SUPERVISED])

    def trunk_parameters(self) -> list[nn.Parameter]:
        """The parameters that come from the checkpoint."""
        return [*self.stem.parameters(), *self.stages.parameters()]

    def scales(self, images: Tensor) -> list[Tensor]:
        """Logits (B, out_channels, H / s, W / s) at the strides s = 1, 2 and 4 for images as in `forward`."""
        x = self.stem(pad_same(2 * images - 1, 3))
        skips = [self.full(images)]
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in SKIPS:
                skips.append(x)
        x = skips.pop()
        decoded = []
        for up, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = up(x, skip)
            decoded.append(x)
        finest = reversed(decoded[-SUPERVISED:])
        return [head(scale) for head, scale in zip(self.heads, finest, strict=True)]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], H and W multiples of 32 -> logits (B, out_channels, H, W)."""
        return self.scales(images)[0]


def _channels(stage: nn.Module) -> int:
    """The output channels of a stage: those of the norm that ends its last block."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    return norms[-1].num_features


def deep_supervision_loss(network: nn.Module, batch: LabelBatch, rng: np.random.Generator) -> Tensor:
    """Dice and cross-entropy over all classes at each supervised scale, weighted 4 : 2 : 1."""
    assert isinstance(network, PretrainedUNet)
    logits = network.scales(batch.images)
    weights = [2.0**-number for number in range(len(logits))]
    losses = [_loss(one, batch.labels) * weight for one, weight in zip(logits, weights, strict=True)]
    return torch.stack(losses).sum() / sum(weights)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    size: Sequence[int] = logits.shape[2:]
    loss: Tensor = DiceCELoss(softmax=True, include_background=False)(logits, F.interpolate(labels, size, mode="area"))
    return loss
