# SPDX-License-Identifier: Apache-2.0
"""Prompts of the network: sparse tokens ("what") and dense maps ("where")."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kprism_model.network.layers import GroupNorm
from kprism_model.network.position import FourierPointEncoding
from kprism_model.network.references import References

PADDING = -1
"""Label of a padded point."""

POSITIVE_PADDING = -2
"""Label of padding in the published code's list of positive clicks; differs only with `attend_padding`."""

COARSEST_ONLY = 2.0
"""For `Prompts.minimum_presence`: above any presence, so all rows stop after the coarsest scale has predicted it."""


@dataclass
class Prompts:
    """N (image, object) pairs to decode, all with the same kinds of prompts.

    `size` is the input's (height, width) in pixels; `image_index` (N,) is the image of each row. The prompts, each of
    which may be None: `class_index` (N,) rows of the class registry; `references` of batch N or 1; `points` (N, K, 2)
    as (row, column) in pixels with `point_labels` (N, K): 1 positive, 0 negative, -1 padding; `dense` (N, 3, height,
    width): positive discs, negative discs, probability of a previous mask. With a `minimum_presence`
    above 0, rows with a lower presence at the coarsest scale stop there, and rows with no plausible pixel at stride 8.
    """

    size: tuple[int, int]
    image_index: Tensor
    class_index: Tensor | None = None
    references: References | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None
    dense: Tensor | None = None
    minimum_presence: float | None = None

    def __post_init__(self) -> None:
        """Refuse prompts that contradict each other."""
        if (self.points is None) != (self.point_labels is None):
            raise ValueError("points and point_labels must be given together")
        if self.class_index is None and self.references is None and self.points is None:
            raise ValueError("prompts need a class, references or points")
        if self.class_index is not None and self.references is not None:
            raise ValueError("a pass takes a class or references, not both")
        if self.points is not None and self.points.shape[1] == 0:
            raise ValueError("points are empty; expected one point or more, or None")
        rows = len(self.image_index)
        for name in ("class_index", "points", "point_labels", "dense"):
            value = getattr(self, name)
            if value is not None and len(value) != rows:
                raise ValueError(f"{name} has {len(value)} rows, image_index has {rows}")
        if self.references is not None and len(self.references.keys) not in (1, rows):
            raise ValueError(f"references are for {len(self.references.keys)} rows, image_index has {rows}")

    def select(self, rows: Tensor) -> Prompts:
        """The prompts of the rows numbered `rows`; `references` must be expanded to all rows."""
        taken: dict[str, Any] = {
            name: None if value is None else value[rows]
            for name in ("class_index", "points", "point_labels", "dense")
            for value in [getattr(self, name)]
        }
        references = None if self.references is None else self.references.select(rows)
        return replace(self, image_index=self.image_index[rows], references=references, **taken)


def click_discs(points: Tensor, point_labels: Tensor, size: tuple[int, int], radius: int = 1) -> Tensor:
    """Clicks as discs: positive ones in the first channel, negative ones in the second.

    `points` (N, K, 2) are (row, column) in pixels, `point_labels` (N, K); returns (N, 2, height, width) of 0 and 1.
    """
    height, width = size
    reach = torch.arange(-radius, radius + 1, device=points.device)
    offsets = torch.cartesian_prod(reach, reach)
    row, column = (points.round().long()[:, :, None] + offsets).unbind(-1)  # (N, K, pixels of the disc's square)
    drawn = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    drawn &= ((offsets**2).sum(1) <= radius**2) & (point_labels >= 0)[..., None]
    channel = (point_labels == 0).long()[..., None]
    index = (channel * height + row.clamp(0, height - 1)) * width + column.clamp(0, width - 1)
    discs = torch.zeros(len(points), 2 * height * width, device=points.device)
    discs = discs.scatter_reduce(1, index.flatten(1), drawn.flatten(1).to(discs.dtype), "amax")
    return discs.view(-1, 2, height, width)


class DensePromptEncoder(nn.Module):
    """The dense prompt map at strides 16, 8 and 4, by four times (stride-2 convolution, ReLU, GroupNorm).

    The first step has `first_channels`; in the published network they are equal to `channels`.
    """

    def __init__(self, channels: int, first_channels: int) -> None:
        super().__init__()
        widths = (3, first_channels, channels, channels, channels)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.ReLU(), GroupNorm(outputs))
            for inputs, outputs in pairwise(widths)
        )

    def forward(self, dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> maps (N, channels, H / stride, W / stride) for strides 16, 8 and 4."""
        scales = []
        for down in self.downs:
            dense = down(dense)
            scales.append(dense)
        return scales[3], scales[2], scales[1]


class ClickEncoder(nn.Module):
    """One token for each click: its position and polarity, and the pixel feature under it through a small MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position = FourierPointEncoding(channels)
        self.content = nn.Sequential(nn.Linear(channels, channels // 2), nn.ReLU(), nn.Linear(channels // 2, channels))

    def read(self, pixels: Tensor, points: Tensor, stride: int) -> Tensor:
        """Token contents (N, K, C) from `pixels` (N, h, w, C) under `points` (N, K, 2) given in input pixels.

        At the coarsest scale it is the pixel itself, at finer ones the mean of the 3 x 3 pixels around it.
        """
        height, width = pixels.shape[1:3]
        centre = _clamped((points / stride).round().long(), height, width)
        reach = (
            torch.arange(-1, 2, device=points.device) if stride < 16 else torch.zeros(1, device=points.device).long()
        )
        around = centre[:, :, None] + torch.cartesian_prod(reach, reach).reshape(-1, 2)
        flat = _clamped(around, height, width)
        inside = (around == flat).all(-1, keepdim=True).to(pixels.dtype)
        index = (flat[..., 0] * width + flat[..., 1]).flatten(1)
        taken = pixels.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, pixels.shape[-1]))
        taken = taken.reshape(*inside.shape[:3], -1) * inside
        return self.content(taken.sum(2) / inside.sum(2))  # type: ignore[no-any-return]


def _clamped(pixels: Tensor, height: int, width: int) -> Tensor:
    """Each (row, column) of `pixels` (..., 2), moved to the nearest pixel of the image if it is outside."""
    return torch.stack([pixels[..., 0].clamp(0, height - 1), pixels[..., 1].clamp(0, width - 1)], dim=-1)
