# SPDX-License-Identifier: Apache-2.0
"""Image encoder and mask encoder: features at strides 4, 8 and 16 (UTNet, arXiv 2107.00781)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.network.config import STRIDES, KPrismConfig
from kprism_model.network.layers import DepthwiseConv, PointwiseConv
from kprism_model.network.weight_cache import WeightCache


class ImageFeatures(NamedTuple):
    """Features of B images at three scales, each (B, channels, height / stride, width / stride)."""

    stride16: Tensor
    stride8: Tensor
    stride4: Tensor

    def select(self, index: Tensor) -> ImageFeatures:
        """The features of the images numbered `index` (N,), in that order."""
        return ImageFeatures(*(scale.index_select(0, index) for scale in self))


class ResidualBlock(nn.Module):
    """Pre-activation residual block: (BN, ReLU, 3x3 conv) twice; a BN, ReLU, 1x1 conv shortcut if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = PointwiseConv(in_channels, out_channels, stride, bias=False)
            self.shortcut = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), projection)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        return out + self.shortcut(x)  # type: ignore[no-any-return]


class SeparableConv(nn.Module):
    """Depthwise 3x3 convolution followed by a pointwise one, without biases."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(in_channels, 3, padding=1)
        self.pointwise = PointwiseConv(in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


class RelativePositionBias(nn.Module):
    """A learned bias for each pair of cells of a `size` x `size` grid, repeated for the pixels of any query grid."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads) * 0.02)
        cells = torch.cartesian_prod(torch.arange(size), torch.arange(size))
        offset = cells[:, None] - cells[None] + size - 1
        self.register_buffer("index", offset[..., 0] * (2 * size - 1) + offset[..., 1], persistent=False)
        self.index: Tensor
        self._cache = WeightCache[Tensor]()

    def forward(self, height: int, width: int, scale: float = 1.0) -> Tensor:
        """Bias of every query pixel to every key cell, times `scale`: (heads, height * width, size * size)."""
        key = (height, width, scale, self.table.device)
        return self._cache.get([self.table], key, lambda: self._by_pixel(height, width, scale))

    def _by_pixel(self, height: int, width: int, scale: float) -> Tensor:
        rows = torch.arange(height, device=self.index.device) * self.size // height
        columns = torch.arange(width, device=self.index.device) * self.size // width
        cell = (rows[:, None] * self.size + columns).flatten()
        by_cell = (self.table * scale)[self.index].permute(2, 0, 1).contiguous()
        return by_cell.index_select(1, cell)


class EfficientAttention(nn.Module):
    """Self-attention with keys and values resampled to a small fixed grid: its cost is linear in pixels."""

    def __init__(self, channels: int, heads: int, reduced_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduced_size = reduced_size
        self.to_qkv = SeparableConv(channels, 3 * channels)
        self.to_out = SeparableConv(channels, channels)
        self.position_bias = RelativePositionBias(heads, reduced_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        q, k, v = self.to_qkv(x).chunk(3, dim=1)
        grid = (self.reduced_size, self.reduced_size)
        if (height, width) != grid:
            k, v = (F.interpolate(t, grid, mode="bilinear", align_corners=True) for t in (k, v))
        # Published layout: channel c belongs to head c % heads.
        q, k, v = (t.reshape(batch, -1, self.heads, t.shape[2] * t.shape[3]).permute(0, 2, 3, 1) for t in (q, k, v))
        q, k, v = (t.contiguous() for t in (q, k, v))  # needed by PyTorch's fused attention on CPU, which is 4x faster
        scale = (channels // self.heads) ** -0.5
        bias = self.position_bias(height, width, scale)  # the published code adds the bias before it scales
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None], scale=scale)
        out = out.permute(0, 3, 1, 2).reshape(batch, channels, height, width)
        if x.is_contiguous(memory_format=torch.channels_last):
            out = out.contiguous(memory_format=torch.channels_last)
        return self.to_out(out)  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """Efficient self-attention and a pointwise convolution, both residual and pre-normalised."""

    def __init__(self, channels: int, heads: int, reduced_size: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.attention = EfficientAttention(channels, heads, reduced_size)
        self.norm2 = nn.BatchNorm2d(channels)
        self.pointwise = PointwiseConv(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attention(self.norm1(x))
        return x + self.pointwise(F.relu(self.norm2(x)))  # type: ignore[no-any-return]


def _stem(in_channels: int, config: KPrismConfig) -> nn.Sequential:
    base, stride = config.base_channels, config.stem_stride
    return nn.Sequential(
        ResidualBlock(in_channels, base, min(stride, 2)), ResidualBlock(base, base, max(stride // 2, 1))
    )


def _stages(config: KPrismConfig) -> Iterator[tuple[int, int, int]]:
    """Input channels, output channels and stride of the four stages.

    They end at strides 2, 4, 8 and 16; the first ends at 4 if the stem already does.
    """
    base, reached = config.base_channels, config.stem_stride
    for end, narrow, wide in ((2, base, base), (4, base, 2 * base), (8, 2 * base, 4 * base), (16, 4 * base, 8 * base)):
        yield narrow, wide, max(end // reached, 1)
        reached = max(end, reached)


class ImageEncoder(nn.Module):
    """A residual stem and four stages of a stride-2 residual block and an attention block."""

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        self.stem = _stem(config.in_channels, config)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(narrow, wide, stride), AttentionBlock(wide, config.encoder_heads, config.reduced_size)
            )
            for narrow, wide, stride in _stages(config)
        )

    def forward(self, images: Tensor) -> ImageFeatures:
        """(B, in_channels, H, W), H and W multiples of 32 -> features at strides 16, 8 and 4."""
        x = self.stem(images)
        scales = []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        return ImageFeatures(scales[3], scales[2], scales[1])


class MaskEncoder(nn.Module):
    """Encodes a reference image with its mask: the image encoder's stages with max-pooling and without attention."""

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        self.stem = _stem(config.in_channels + 1, config)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(stride), ResidualBlock(narrow, wide)) for narrow, wide, stride in _stages(config)
        )

    def forward(self, images: Tensor, masks: Tensor) -> ImageFeatures:
        """Images (B, in_channels, H, W) and masks (B, 1, H, W) -> features at strides 16, 8 and 4."""
        x = self.stem(torch.cat([images, masks], dim=1))
        scales = []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        return ImageFeatures(scales[3], scales[2], scales[1])


class SeparableBlock(nn.Module):
    """Pre-activation residual block of two (BN, ReLU, separable 3x3 convolution)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (nn.BatchNorm2d(channels), nn.ReLU(), SeparableConv(channels, channels))
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.layers(x)  # type: ignore[no-any-return]


class SharedMaskEncoder(nn.Module):
    """Adds a mask to the features of its image, so that a reference image is encoded only once.

    Each scale gets the mask at full resolution: the mask pixels under a feature pixel become channels.
    """

    def __init__(self, config: KPrismConfig) -> None:
        super().__init__()
        scales = list(zip(config.encoder_channels, STRIDES, strict=True))
        self.from_image = nn.ModuleList(PointwiseConv(channels, channels) for channels, _ in scales)
        self.from_mask = nn.ModuleList(PointwiseConv(stride**2, channels) for channels, stride in scales)
        self.blocks = nn.ModuleList(SeparableBlock(channels) for channels, _ in scales)

    def forward(self, features: ImageFeatures, masks: Tensor) -> ImageFeatures:
        """`features` of B images and their masks (B, 1, H, W) -> features of the masked objects."""
        scales = []
        for level, (scale, stride) in enumerate(zip(features, STRIDES, strict=True)):
            laid_out = F.pixel_unshuffle(masks, stride).contiguous(memory_format=torch.channels_last)
            scales.append(self.blocks[level](self.from_image[level](scale) + self.from_mask[level](laid_out)))
        return ImageFeatures(*scales)
