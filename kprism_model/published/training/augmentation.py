# SPDX-License-Identifier: Apache-2.0
"""The published augmentation of training images, drawn for each image and done for a whole batch on its device.

The published code uses albumentations 1 (`kprism/data_mapper/train_data_utils.py`): a left-right flip, shift with scale
and rotation, brightness and contrast, Gaussian blur, Gaussian noise, grid distortion, with zeros from outside of the
image. Chances and strengths are the same here. All geometric changes are one resampling, before the others, so that the
image is interpolated once; masks are resampled bilinearly and cut at 0.5. An image that is only flipped lies at the
top left of its canvas, as the server lays it, others in the middle, where rotation cuts off least. A mask of which less
than 8 pixels would remain is only flipped, with its image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FLIP, MOVE, BRIGHTEN, BLUR, NOISE, DISTORT = 0.5, 0.3, 0.4, 0.3, 0.3, 0.3
"""Chances of the six changes."""

SHIFT, SCALE, DEGREES = 0.05, 0.05, 45.0
CONTRAST, BRIGHTNESS = 0.2, 0.2
BLUR_SIDES = (3, 5, 7)
NOISE_VARIANCE = (10.0, 50.0)
"""In grey levels of 0..255."""
GRID_CELLS, GRID_STRENGTH = 5, 0.3
LEAST_PIXELS = 8


class Draw(NamedTuple):
    """How one image is changed; the defaults change nothing.

    angle: radians. shift: (columns, rows), shares of the canvas. gain, offset: of intensities in [0, 1]. blur: side of
    the kernel in pixels, 0 for none. noise: standard deviation of intensities in [0, 1], 0 for none; noise_seed. cells:
    how much each cell of the distorted grid is stretched, columns and rows.
    """

    flip: bool = False
    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    gain: float = 1.0
    offset: float = 0.0
    blur: int = 0
    noise: float = 0.0
    noise_seed: int = 0
    cells: tuple[tuple[float, ...], tuple[float, ...]] = ((1.0,) * GRID_CELLS,) * 2

    def only_flipped(self) -> Draw:
        """The same without shift, scale, rotation and distortion."""
        still = Draw()
        return self._replace(angle=still.angle, scale=still.scale, shift=still.shift, cells=still.cells)

    @classmethod
    def random(cls, rng: np.random.Generator) -> Draw:
        """One draw with the published chances; it takes the same number of values from `rng` whatever comes out."""
        chances = rng.random(6) < (FLIP, MOVE, BRIGHTEN, BLUR, NOISE, DISTORT)
        flip, move, brighten, blur, noise, distort = chances.tolist()
        angle, scale, *shift, contrast, brightness = rng.uniform(-1, 1, 6).tolist()
        side, variance = BLUR_SIDES[rng.integers(len(BLUR_SIDES))], rng.uniform(*NOISE_VARIANCE)
        seed, cells = int(rng.integers(2**62)), 1 + rng.uniform(-GRID_STRENGTH, GRID_STRENGTH, (2, GRID_CELLS))
        drawn = cls(flip=flip, noise_seed=seed)
        if move:
            columns, rows = (SHIFT * value for value in shift)
            drawn = drawn._replace(angle=math.radians(DEGREES) * angle, scale=1 + SCALE * scale, shift=(columns, rows))
        if brighten:
            drawn = drawn._replace(gain=1 + CONTRAST * contrast, offset=BRIGHTNESS * brightness)
        if blur:
            drawn = drawn._replace(blur=side)
        if noise:
            drawn = drawn._replace(noise=math.sqrt(variance) / 255)
        if distort:
            drawn = drawn._replace(cells=(tuple(cells[0].tolist()), tuple(cells[1].tolist())))
        return drawn


Draws = tuple[Draw, ...]
"""How each image of a batch is changed."""


def augment(images: Tensor, masks: Tensor, content: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Changed copies of uint8 images (n, 3, S, S) and masks (n, 1, S, S), on their device and without waiting for it.

    `content` (n, 2), on the CPU, are the rows and columns from the top left that are not padding. Returns float32
    images in [0, 1] and float32 masks of 0 and 1. The result for an image depends on its own draw alone.
    """
    device, size = images.device, images.shape[-1]
    masks = masks.float()
    share = _sent((content / size).tolist(), device)
    grid = sampling_grid(draws, share, size)
    kept = _sample(masks, grid).gt(0.5).sum(dim=(1, 2, 3)) >= LEAST_PIXELS
    flipped = sampling_grid(tuple(draw.only_flipped() for draw in draws), share, size)
    grid = torch.where(kept[:, None, None, None], grid, flipped)
    moved = _sample(torch.cat([images.float() / 255, masks], dim=1), grid)
    return change_intensity(moved[:, :3], draws), (moved[:, 3:] > 0.5).float()


def sampling_grid(draws: Draws, share: Tensor, size: int) -> Tensor:
    """Where each pixel of the results comes from: (n, size, size, 2) as (column, row), as `F.grid_sample` takes them.

    `share` (n, 2), on the device of the result, is the share of the canvas that is not padding, rows and columns.
    """
    device = share.device
    still = _sent([float(draw == draw.only_flipped()) for draw in draws], device)
    corner = 1 - share.flip(1)  # from the middle of the canvas to the top left, in units of half of it
    cells = _sent([draw.cells for draw in draws], device)  # (n, 2, cells)
    place = _distorted(cells, size) + (still[:, None] * corner)[:, :, None]  # (n, 2, size): columns, rows
    columns, rows = place[:, 0, None, :], place[:, 1, :, None]
    # back from the shift, the rotation and the scale
    values = [(math.cos(d.angle) / d.scale, math.sin(d.angle) / d.scale, 2 * d.shift[0], 2 * d.shift[1]) for d in draws]
    cosine, sine, right, down = _sent(values, device).T[:, :, None, None]
    columns, rows = columns - right, rows - down
    columns, rows = cosine * columns + sine * rows, cosine * rows - sine * columns
    side = _sent([-1.0 if draw.flip else 1.0 for draw in draws], device)[:, None, None]
    return torch.stack([side * columns - corner[:, 0, None, None], rows - corner[:, 1, None, None]], dim=3)


def change_intensity(images: Tensor, draws: Draws) -> Tensor:
    """Brightness and contrast, blur and noise of float images (n, 3, H, W) in [0, 1]; changes `images` in place."""
    device = images.device
    gain = _sent([(draw.gain, draw.offset) for draw in draws], device)[:, :, None, None, None]
    images = (images * gain[:, 0] + gain[:, 1]).clamp_(0, 1)
    for number, draw in enumerate(draws):  # what is to be done is known without asking the device
        if draw.blur:
            images[number] = _blurred(images[number], draw.blur)
        if draw.noise:
            generator = torch.Generator(device).manual_seed(draw.noise_seed)
            noise = torch.randn(images.shape[1:], generator=generator, device=device)
            images[number] = (images[number] + draw.noise * noise).clamp_(0, 1)
    return images


def _distorted(cells: Tensor, size: int) -> Tensor:
    """Places of columns and rows, (n, 2, size) in [-1, 1] or beyond, where cells are stretched by (n, 2, cells)."""
    place = (torch.arange(size, device=cells.device) + 0.5) * (cells.shape[2] / size)
    cell = place.long().clamp(max=cells.shape[2] - 1)
    before = F.pad(cells.cumsum(2), (1, 0))[:, :, cell]
    return (before + (place - cell) * cells[:, :, cell]) * (2 / cells.shape[2]) - 1


def _sample(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blurred(image: Tensor, side: int) -> Tensor:
    """(3, H, W) after a Gaussian kernel of `side` pixels, with the width that OpenCV gives it."""
    sigma = 0.3 * ((side - 1) / 2 - 1) + 0.8
    weights = [math.exp(-((place - side // 2) ** 2) / (2 * sigma**2)) for place in range(side)]
    kernel = _sent([weight / sum(weights) for weight in weights], image.device)
    padded = F.pad(image[:, None], (side // 2,) * 4, mode="reflect")
    blurred: Tensor = F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]
    return blurred


def _sent(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers as a float32 tensor on `device`, without waiting for it."""
    held = torch.tensor(values, dtype=torch.float32)
    return held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held.to(device)
