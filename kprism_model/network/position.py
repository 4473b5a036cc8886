# SPDX-License-Identifier: Apache-2.0
"""Position encodings: sine maps over the pixel grid and random Fourier features of points."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn


def _interleaved(angles: Tensor) -> Tensor:
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


@lru_cache(maxsize=64)
def sine_encoding(height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
    """Sine encoding of a pixel grid, rows in the first half of the channels (DETR, arXiv 2005.12872): (C, H, W).

    The result is shared: do not change it in place.
    """
    with torch.inference_mode(False):  # the cached result may come from inference and be used in training later
        return _sine_encoding(height, width, channels, device)


def _sine_encoding(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    half = channels // 2
    wavelength = 10000.0 ** (torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    rows = torch.arange(1, height + 1, device=device) / (height + 1e-6) * 2 * math.pi
    columns = torch.arange(1, width + 1, device=device) / (width + 1e-6) * 2 * math.pi
    by_row = _interleaved(rows[:, None] / wavelength).T[:, :, None].expand(-1, -1, width)
    by_column = _interleaved(columns[:, None] / wavelength).T[:, None, :].expand(-1, height, -1)
    return torch.cat([by_row, by_column])


def summary_encoding(height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
    """Sine encoding that the object summariser adds, columns first (Cutie, arXiv 2310.12982): (H, W, C)."""
    half = math.ceil(channels / 4) * 2
    frequency = 128.0 ** -(torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    rows = torch.arange(height, device=device) / (height - 1 + 1e-6) * 32
    columns = torch.arange(width, device=device) / (width - 1 + 1e-6) * 32
    by_row = _interleaved(rows[:, None] * frequency)[:, None].expand(-1, width, -1)
    by_column = _interleaved(columns[:, None] * frequency)[None].expand(height, -1, -1)
    return torch.cat([by_column, by_row], dim=-1)[..., :channels]


class FourierPointEncoding(nn.Module):
    """Random Fourier features of points (Segment Anything, arXiv 2304.02643), plus a learned embedding of the label."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("gaussian", torch.randn(2, channels // 2))
        self.gaussian: Tensor
        self.labels = nn.Parameter(torch.randn(2, channels))
        self.padding = nn.Parameter(torch.randn(channels))

    def forward(self, points: Tensor, point_labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Encode points.

        `points` (N, K, 2) are (row, column) in pixels of an input of `size` (height, width); `point_labels` (N, K) are
        1 positive, 0 negative, -1 padding. Returns (N, K, channels).
        """
        doubled = 2 * (points + 0.5)
        relative = torch.stack([doubled[..., 0] / size[0], doubled[..., 1] / size[1]], dim=-1)
        angles = 2 * math.pi * ((relative - 1) @ self.gaussian)
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
        encoded = encoded + self.labels[point_labels.clamp(min=0)]
        return torch.where((point_labels < 0)[..., None], self.padding, encoded)
