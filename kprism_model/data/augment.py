# SPDX-License-Identifier: Apache-2.0
"""Random augmentation of images and masks for training: whole batches, one resampling for all geometric changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Chances and strengths of the changes; drawn for each image, the same for every data set.

    Only the left-right flip is frequent, because up and down have a meaning in most medical images.
    """

    horizontal_flip: float = 0.5
    """Chance; so are `vertical_flip` and `quarter_turn`."""
    vertical_flip: float = 0.15
    quarter_turn: float = 0.15
    rotation: float = 20.0
    """Degrees, in both directions."""
    zoom: float = 1.6
    """Largest enlargement; the strongest reduction is its inverse. Uniform in the logarithm. `stretch`: rows alone."""
    stretch: float = 1.12
    shear: float = 0.1
    """Shift in columns for each row, in both directions."""
    placement: float = 1.0
    """How far the image may move from the top left corner: 1 is any place, or any part of a large image."""
    gamma: float = 1.5
    """Largest exponent; the smallest is its inverse. `contrast`: the same for the contrast about the image's mean."""
    contrast: float = 1.4
    brightness: float = 0.12
    """Largest value that is added or subtracted."""
    window: float = 0.15
    """Chance that a grey image is shown in a narrower window of its grey levels, as CT and MRI are."""
    window_width: float = 0.5
    """Narrowest window, as a share of all grey levels."""
    tint: float = 0.15
    """Largest relative gain of red, green and blue, drawn separately; only for colour images."""
    grey: float = 0.1
    """Chance that a colour image loses its colour; `invert`, `blur` and `noise` are also chances."""
    invert: float = 0.1
    blur: float = 0.15
    noise: float = 0.3
    noise_level: float = 0.06
    """Largest standard deviation of the noise."""

    def __post_init__(self) -> None:
        """Refuse chances outside [0, 1], factors below 1 and negative amounts, naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            factor = field.name in ("zoom", "stretch", "gamma", "contrast")
            low, high = (1.0, math.inf) if factor else (0.0, 180.0 if field.name == "rotation" else 1.0)
            if not low <= value <= high:
                raise ValueError(f"Augmentation.{field.name} must lie in [{low:g}, {high:g}], got {value}")

    @classmethod
    def none(cls) -> Augmentation:
        """Settings that change nothing."""
        factors = dict.fromkeys(("zoom", "stretch", "gamma", "contrast"), 1.0)
        return cls(**{field.name: factors.get(field.name, 0.0) for field in fields(cls)})

    def without_geometry(self) -> Augmentation:
        """The same intensity changes without geometric ones."""
        still = Augmentation.none()
        chances = ("horizontal_flip", "vertical_flip", "quarter_turn")
        amounts = ("rotation", "zoom", "stretch", "shear", "placement")
        return replace(self, **{name: getattr(still, name) for name in (*chances, *amounts)})


def augment_batch(
    images: Tensor,
    masks: Tensor,
    generator: Generator,
    *,
    size: int,
    content: Tensor | None = None,
    settings: Augmentation | None = None,
) -> tuple[Tensor, Tensor]:
    """Randomly changed copies, resized to `size`.

    images: (n, 3, S, S) in [0, 1], or uint8 in 0..255; masks: (n, m, S, S), 0 and 1; content: (n, 2) rows and columns,
    from the top left, that are not padding (default: all). Returns float32 (n, 3, size, size) in [0, 1],
    with zeros outside the image, and float32 masks (n, m, size, size) of 0 and 1, on the device of `images`.
    Reproducible by `generator`, a CPU generator; another device draws its own noise. ValueError for other shapes.
    """
    side = images.shape[-1]
    shapes = images.shape, (masks.shape[0], *masks.shape[2:])
    if shapes != ((len(images), 3, side, side), (len(images), side, side)):
        raise ValueError(f"expected images (n, 3, S, S) and masks (n, m, S, S), got {images.shape} and {masks.shape}")
    settings = settings or Augmentation()
    fraction = torch.ones(len(images), 2) if content is None else content.float() / side
    theta = random_affine(fraction, settings, generator)
    images, masks, inside = _resample(images, masks, fraction.to(images.device), theta.to(images.device), size)
    images = change_intensity(images, inside, settings, generator)
    return images * inside, (masks > 0.5).float()


def random_affine(content: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Affine maps (n, 2, 3) from output to input positions, as `F.affine_grid` takes them.

    `content` (n, 2) is the share of the canvas in rows and columns. Positions are (column, row) in units of the canvas.
    The changed image's bounding box is placed at random, so that as much of it as possible is visible.
    """
    n = len(content)
    forward = _random_matrix(n, settings, generator)
    half = content.flip(1) / 2
    bounds = (forward.abs() @ half[:, :, None])[:, :, 0]
    offset = settings.placement * torch.rand(n, 2, generator=generator) * (1 - 2 * bounds)
    # Without changes this is a plain resize: the box is the image itself, and an offset of zero keeps it top left.
    inverse = torch.linalg.inv(forward)
    shift = (inverse @ (1 - 2 * (bounds + offset))[:, :, None])[:, :, 0] + 2 * half - 1
    return torch.cat([inverse, shift[:, :, None]], dim=2)


def _random_matrix(n: int, settings: Augmentation, generator: Generator) -> Tensor:
    """The linear parts (n, 2, 2), from input to output, acting on (column, row)."""
    angle = _uniform(n, math.radians(settings.rotation), generator)
    angle = angle + math.pi / 2 * _chance(n, settings.quarter_turn, generator)
    zoom, stretch = _factor(n, settings.zoom, generator), _factor(n, settings.stretch, generator)
    flips = [1 - 2 * _chance(n, p, generator) for p in (settings.horizontal_flip, settings.vertical_flip)]
    shear = _uniform(n, settings.shear, generator)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros(n)
    rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(n, 2, 2)
    shape = torch.stack([zoom * flips[0], shear * zoom, zero, zoom * stretch * flips[1]], dim=1).view(n, 2, 2)
    return rotation @ shape


def _resample(
    images: Tensor, masks: Tensor, content: Tensor, theta: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks and the map of pixels that are not padding, (n, 1, size, size) of 0 and 1, moved by `theta`."""
    scale = 1.0 if images.is_floating_point() else 1 / 255
    grid = F.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    moved = F.grid_sample(stacked_channels(images, masks, content, size), grid, align_corners=False)
    return moved[:, :3] * scale, moved[:, 3:-1], (moved[:, -1:] > 0.5).float()


def stacked_channels(images: Tensor, masks: Tensor, content: Tensor, size: int) -> Tensor:
    """Images (n, 3, S, S), masks (n, m, S, S) and the map of pixels that are not padding as float32 channels.

    `content` (n, 2) is the share of the canvas in rows and columns. The result, (n, 3 + m + 1, s, s), is what
    `grid_sample` makes images of `size` pixels from; it is reduced first by the largest whole number.
    """
    stacked = torch.cat([images.float(), masks.float()], dim=1)
    reduction = images.shape[-1] // size
    if reduction > 1:  # without averaging first, bilinear sampling would skip pixels
        stacked = F.avg_pool2d(stacked, reduction)
    positions = (torch.arange(stacked.shape[-1], device=images.device) + 0.5) / stacked.shape[-1]
    rows, columns = (positions < content[:, axis, None] for axis in (0, 1))
    inside = (rows[:, :, None] & columns[:, None, :]).float()[:, None]
    return torch.cat([stacked, inside], dim=1)


def change_intensity(images: Tensor, inside: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """Colour, inversion, gamma, contrast, brightness, blur and noise of (n, 3, H, W) in [0, 1]; grey images stay grey.

    `inside` (n, 1, H, W) of 0 and 1 marks pixels that are not padding.
    """
    n, device = len(images), images.device
    coloured = ((images[:, 0] - images[:, 1]).abs().amax(dim=(1, 2)) > 1e-3).float().cpu()
    tint = 1 + coloured[:, None] * settings.tint * (2 * torch.rand(n, 3, generator=generator) - 1)
    images = images * tint[:, :, None, None].to(device)
    drop = (coloured * _chance(n, settings.grey, generator)).bool()
    images[drop] = images[drop].mean(dim=1, keepdim=True)
    images = _windowed(images.clamp_(0, 1), coloured == 0, settings, generator)
    invert = _column(_chance(n, settings.invert, generator), device)
    images = invert + (1 - 2 * invert) * images
    if settings.gamma > 1:
        images = images.pow(_column(_factor(n, settings.gamma, generator), device))
    mean = (images * inside).sum(dim=(1, 2, 3)) / (3 * inside.sum(dim=(1, 2, 3))).clamp(min=1)
    gain = _factor(n, settings.contrast, generator).to(device)
    offset = mean * (1 - gain) + _uniform(n, settings.brightness, generator).to(device)
    images = images * _column(gain, device) + _column(offset, device)
    blur = _chance(n, settings.blur, generator).bool()
    if blur.any():  # two box filters are close to a Gaussian of 1.2 pixels
        images[blur] = F.avg_pool2d(F.avg_pool2d(images[blur], 3, 1, 1), 3, 1, 1)
    if settings.noise:
        level = settings.noise_level * torch.rand(n, generator=generator) * _chance(n, settings.noise, generator)
        noise = torch.randn(n, 1, *images.shape[2:], generator=_on_device(generator, device), device=device)
        images = images + _column(level, device) * noise
    return images.clamp_(0, 1)


def _windowed(images: Tensor, grey: Tensor, settings: Augmentation, generator: Generator) -> Tensor:
    """A narrower window of grey levels for some of the images marked in `grey` (n,)."""
    n = len(images)
    width = 1 - (1 - settings.window_width) * torch.rand(n, generator=generator)
    low = (1 - width) * torch.rand(n, generator=generator)
    chosen = _column(grey * _chance(n, settings.window, generator), images.device)
    narrow = ((images - _column(low, images.device)) / _column(width, images.device)).clamp(0, 1)
    return images + chosen * (narrow - images)


def _on_device(generator: Generator, device: torch.device) -> Generator:
    """A generator on `device`: the given one on the CPU, else a new one seeded by it, for the many values of noise."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return Generator(device).manual_seed(seed)


def _uniform(n: int, largest: float, generator: Generator) -> Tensor:
    return largest * (2 * torch.rand(n, generator=generator) - 1)


def _factor(n: int, largest: float, generator: Generator) -> Tensor:
    return _uniform(n, math.log(largest), generator).exp()


def _chance(n: int, probability: float, generator: Generator) -> Tensor:
    return (torch.rand(n, generator=generator) < probability).float()


def _column(values: Tensor, device: torch.device) -> Tensor:
    return values[:, None, None, None].to(device)
