# SPDX-License-Identifier: Apache-2.0
"""Random windows for training: the windows of `kprism_model.windowed`, with jitter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from kprism_model.predictor import THRESHOLD
from kprism_model.window import Box, Window, WindowRules, window_around
from kprism_model.windowed import RULES

MARGIN_FACTOR = 2.0
"""The rule's margin is multiplied by a random factor between 1 / this and this, uniform in the logarithm."""

MAXIMUM_SHIFT = 1 / 8
"""A window is moved by at most this share of its sides, and never so far that it cuts the structure."""


def random_windows(
    masks: ArrayLike,
    previous: ArrayLike | None,
    native: int,
    rng: np.random.Generator,
    rules: WindowRules = RULES,
) -> list[Window]:
    """A window around each of N masks (N, 1, H, W), an array or a CPU tensor, and its previous mask.

    `previous` are masks or probabilities of the same shape, or None; `native` is the long side of the network's canvas.
    If the rules give no window, or both masks are empty, the window is the whole image. ValueError for other shapes.
    """
    targets = np.asarray(masks) >= THRESHOLD
    before = np.zeros_like(targets) if previous is None else np.asarray(previous) >= THRESHOLD
    if targets.ndim != 4 or targets.shape[1] != 1 or before.shape != targets.shape:
        raise ValueError(f"expected masks of one shape (N, 1, H, W), got {targets.shape} and {before.shape}")
    return [
        _random_window(mask | old, native, rng, rules) for mask, old in zip(targets[:, 0], before[:, 0], strict=True)
    ]


def crop_to_windows(
    images: Tensor, masks: Tensor, content: Tensor, windows: Sequence[Window]
) -> tuple[Tensor, Tensor, Tensor]:
    """The window of each image, enlarged to the whole canvas.

    images: uint8 (n, 3, S, S); masks: bool (n, m, S, S); content: int64 (n, 2), rows and columns without padding;
    `windows` of images of S x S. Returns the same three for the windows, top left on the canvas (`Geometry.fit`).
    """
    side = images.shape[-1]
    crops, crop_masks, contents = torch.zeros_like(images), torch.zeros_like(masks), content.clone()
    for row, window in enumerate(windows):
        scale = side / window.longest
        size = (round(window.rows * scale), round(window.columns * scale))
        box = (slice(None), *window.box)
        crops[row, :, : size[0], : size[1]] = _resized(images[row][box], size).round().byte()
        crop_masks[row, :, : size[0], : size[1]] = _resized(masks[row][box], size) >= THRESHOLD
        left = content[row] - torch.tensor([window.top, window.left])
        contents[row] = (left * scale).round().long().clamp(min=torch.ones(2).long(), max=torch.tensor(size))
    return crops, crop_masks, contents


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(planes[None].float(), size, mode="bilinear", align_corners=False)[0]


def _random_window(mask: NDArray[np.bool_], native: int, rng: np.random.Generator, rules: WindowRules) -> Window:
    size = (mask.shape[0], mask.shape[1])
    box = Box.around(mask)
    margin = rules.margin * math.exp(rng.uniform(-1, 1) * math.log(MARGIN_FACTOR))
    window = window_around(size, native, [box], replace(rules, margin=margin))
    scale, moves = rules.step ** rng.uniform(-0.5, 0.5), rng.uniform(-MAXIMUM_SHIFT, MAXIMUM_SHIFT, 2)
    if box is None or window.is_whole:
        return window
    side = min(max(round(window.longest * scale), box.longest), max(size))
    rows, columns = min(side, size[0]), min(side, size[1])
    top = window.top + (window.rows - rows) / 2 + moves[0] * rows
    left = window.left + (window.columns - columns) / 2 + moves[1] * columns
    return Window(
        _corner(top, box.bottom - rows + 1, box.top, size[0] - rows),
        _corner(left, box.right - columns + 1, box.left, size[1] - columns),
        rows,
        columns,
        size,
    )


def _corner(position: float, first: int, last: int, end: int) -> int:
    """The nearest integer position between max(first, 0) and min(last, end)."""
    return min(max(round(position), first, 0), last, end)
