# SPDX-License-Identifier: Apache-2.0
"""Synthetic tasks: random label maps with random textures, so that references and clicks work on unseen structures.

The idea is from UniverSeg (arXiv 2304.06131) and SynthMorph (arXiv 2004.10282): the images of a group are random
deformations of one label map, painted with one palette, as different patients show the same structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SYNTHETIC = "synthetic"
"""The name of the data set of these images."""


@dataclass(frozen=True)
class SyntheticTasks:
    """Settings of the tasks; each group of images draws its own values."""

    labels: tuple[int, int] = (2, 7)
    """Smallest and largest number of regions of a label map."""
    cells: tuple[int, int] = (2, 8)
    """Smallest and largest number of cells along a side of the noise: few give large regions, many give small ones."""
    unevenness: float = 0.6
    """Spread of the offsets that make some regions large and others small."""
    displacement: float = 0.2
    """Largest shift of a point, as a share of the image."""
    individuality: float = 0.25
    """Weight of the noise that each image adds to the shared map."""
    colour: float = 0.4
    """Chance that a group is painted in colour."""
    texture: float = 0.18
    """Largest amplitude of each of the two textures, fine and coarse."""
    share: tuple[float, float] = (0.004, 0.6)
    """Smallest and largest mean share of the image of the target region, if there is such a region."""


def synthetic_group(
    count: int, size: int, generator: Generator, tasks: SyntheticTasks | None = None
) -> tuple[Tensor, Tensor]:
    """`count` images of one random structure.

    Returns float32 images (count, 3, size, size) in [0, 1] and masks (count, 1, size, size) of 0 and 1; a mask may be
    empty if the deformation moved the structure out of the image. Reproducible by `generator`, a CPU generator.
    """
    tasks = tasks or SyntheticTasks()
    labels = _label_maps(count, size, generator, tasks)
    images = _paint(labels, generator, tasks)
    target = _choose_target(labels, generator, tasks)
    return images, (labels == target).float()[:, None]


def _label_maps(count: int, size: int, generator: Generator, tasks: SyntheticTasks) -> Tensor:
    """(count, size, size) region numbers: at each pixel the largest of K smooth fields, deformed for each image."""
    regions, cells = (_integer(low, high, generator) for low, high in (tasks.labels, tasks.cells))
    shared = _smooth(regions, cells, size, generator) + 0.15 * _smooth(regions, 3 * cells, size, generator)
    shared = shared + tasks.unevenness * torch.randn(regions, 1, 1, generator=generator)
    shift = torch.stack([_smooth(2, 4, size, generator) for _ in range(count)]).clamp(-2, 2)
    grid = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 1, size, size], align_corners=False)
    grid = grid + tasks.displacement * shift.permute(0, 2, 3, 1)
    moved = F.grid_sample(shared.expand(count, -1, -1, -1), grid, padding_mode="reflection", align_corners=False)
    own = torch.stack([_smooth(regions, cells, size, generator) for _ in range(count)])
    return (moved + tasks.individuality * own).argmax(1)


def _paint(labels: Tensor, generator: Generator, tasks: SyntheticTasks) -> Tensor:
    """Images (count, 3, size, size): each region has a colour and an amount of a fine and a coarse texture."""
    count, size = labels.shape[:2]
    regions = int(labels.max()) + 1
    colours = torch.rand(regions, 3, generator=generator)
    if torch.rand((), generator=generator) >= tasks.colour:
        colours = colours[:, :1].expand(-1, 3)
    amplitudes = tasks.texture * torch.rand(2, regions, generator=generator)
    fine = F.avg_pool2d(torch.randn(count, size, size, generator=generator), 3, 1, 1) * 2
    coarse = _smooth(count, max(4, size // 8), size, generator)
    texture = amplitudes[0][labels] * fine + amplitudes[1][labels] * coarse
    lighting = 1 + 0.15 * _smooth(count, 3, size, generator)
    images = (colours[labels].permute(0, 3, 1, 2) + texture[:, None]) * lighting[:, None]
    return images.clamp_(0, 1)


def _choose_target(labels: Tensor, generator: Generator, tasks: SyntheticTasks) -> int:
    """A region within the limits of `tasks.share`; if there is none, the one nearest to half the image."""
    shares = torch.bincount(labels.flatten()) / labels.numel()
    low, high = tasks.share
    fit = ((shares >= low) & (shares <= high)).nonzero().flatten()
    if not len(fit):
        return int((shares - 0.5).abs().argmin())
    return int(fit[_integer(0, len(fit) - 1, generator)])


def _smooth(channels: int, cells: int, size: int, generator: Generator) -> Tensor:
    """Noise (channels, size, size) of about unit variance that varies over size / cells pixels."""
    noise = torch.randn(1, channels, cells, cells, generator=generator)
    # Bicubic resizing is expensive and only needed for large cells, so it is used up to a quarter of the size.
    quarter = F.interpolate(noise, (max(cells, size // 4),) * 2, mode="bicubic", align_corners=True)
    return F.interpolate(quarter, (size, size), mode="bilinear", align_corners=True)[0]


def _integer(low: int, high: int, generator: Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
