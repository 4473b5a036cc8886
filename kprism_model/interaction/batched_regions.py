# SPDX-License-Identifier: Apache-2.0
"""Connected components and distances of many masks at once, in torch, without waiting for the device.

SciPy does the same work on the host (`kprism_model.components`); these versions stay on the GPU. No value is copied to
the host, and all shapes and numbers of iterations depend on the inputs' shapes only, so CUDA graphs and `torch.compile`
can capture the code. Masks are (N, H, W) booleans; the number of a pixel is row * W + column.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_SHORTCUTS_PER_ITERATION = 3  # of the pointers; each costs less than one more look at the neighbours
_DISTANCES_AT_ONCE = 1 << 25  # bounds the memory to 128 MiB


def component_labels(masks: Tensor) -> Tensor:
    """The number of the first pixel of each pixel's 8-connected component, H * W outside the masks: int64 (N, H, W).

    Labels are propagated as in FastSV (Zhang, Azad and Hu 2020): each pixel points to one with a smaller number in its
    component. It takes the smallest number that its neighbours point to, passes it to the pixel that it pointed to, and
    pointers are shortened. Each shortcut halves the depth of the pointer trees, so few iterations are enough.
    """
    pixels = masks[0].numel()
    flat = masks.flatten(1)
    own = torch.arange(pixels, device=masks.device).expand(len(masks), -1)
    parents = own  # pixels outside the masks keep their own number and touch nothing
    for _ in range(_iterations(pixels)):
        seen = torch.where(flat, parents, pixels).view_as(masks)
        lowest = torch.where(flat, _lowest_neighbour(seen).flatten(1), own)
        parents = torch.minimum(parents.scatter_reduce(1, parents, lowest, "amin"), lowest)
        for _ in range(_SHORTCUTS_PER_ITERATION):
            parents = parents.gather(1, parents)
    return torch.where(flat, parents, pixels).view_as(masks)


def component_sizes(labels: Tensor) -> Tensor:
    """Pixels of the component that starts at each pixel, 0 if none starts there: float32 (N, H * W)."""
    flat = labels.flatten(1)
    sizes = torch.zeros(len(flat), flat.shape[1] + 1, device=flat.device)
    return sizes.scatter_add(1, flat, torch.ones_like(flat, dtype=sizes.dtype))[:, :-1]


def largest_component(masks: Tensor) -> tuple[Tensor, Tensor]:
    """The largest 8-connected component (N, H, W) of each mask, and its size (N,); the first of equal ones."""
    labels = component_labels(masks)
    size, start = component_sizes(labels).max(1)
    return masks & (labels == start[:, None, None]), size


def squared_distance(regions: Tensor, *, border: bool, reach: int | None = None) -> Tensor:
    """Squared Euclidean distance of each pixel to the nearest pixel outside its region: float32 (N, H, W), exact.

    With `border`, everything beyond the image is outside the region; without it, nothing is. A distance over `reach`
    pixels (default: no limit) is only known to be over `reach`; so is every distance if no pixel is outside.
    """
    height, width = regions.shape[-2:]
    reach = max(height, width) if reach is None else reach
    far = 2.0 * max(height, width) + reach
    down = torch.where(regions, _run_length(regions, border, far), 0.0).square()
    # Beyond the border, pixels are outside (distance 0) or far away.
    shift = min(reach, (width + 1) // 2 if border else width - 1)
    padded = F.pad(down, (shift, shift), value=0.0 if border else far**2)
    offsets = torch.arange(-shift, shift + 1, device=regions.device, dtype=torch.float32).square()
    windows = padded.unfold(-1, 2 * shift + 1, 1)  # a view
    nearest = down
    chunk = max(1, _DISTANCES_AT_ONCE // max(1, down.numel()))
    for start in range(0, 2 * shift + 1, chunk):
        part = slice(start, start + chunk)
        nearest = torch.minimum(nearest, (windows[..., part] + offsets[part]).amin(-1))
    return nearest


def drawn_pixel(candidates: Tensor, chance: Tensor) -> Tensor:
    """The number of a random pixel of each mask, all equally likely: int64 (N, K).

    `chance` (N, K) are uniform in [0, 1). The number is 0 for an empty mask.
    """
    rank = candidates.flatten(1).cumsum(1)
    wanted = (chance * rank[:, -1:]).long() + 1
    pixels = torch.searchsorted(rank, torch.minimum(wanted, rank[:, -1:]))
    return pixels.clamp(max=rank.shape[1] - 1)


def central_pixel(candidates: Tensor) -> Tensor:
    """The number of the pixel of each mask that is nearest to its pixels' centroid: int64 (N,); 0 for an empty one."""
    rows, columns = pixel_grid(candidates)
    centre = centroid(candidates)
    away = (rows - centre[:, 0, None, None]).square() + (columns - centre[:, 1, None, None]).square()
    return torch.where(candidates, away, math.inf).flatten(1).argmin(1)


def centroid(masks: Tensor) -> Tensor:
    """Mean (row, column) of each mask's pixels: float32 (N, 2); (0, 0) for an empty one."""
    rows, columns = pixel_grid(masks)
    weight = masks.float()
    sums = torch.stack([(weight * rows).sum((1, 2)), (weight * columns).sum((1, 2))], dim=1)
    return sums / weight.sum((1, 2)).clamp(min=1)[:, None]


def pixel_grid(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Row (H, 1) and column (W,) numbers as float32."""
    height, width = masks.shape[-2:]
    rows = torch.arange(height, device=masks.device, dtype=torch.float32)[:, None]
    return rows, torch.arange(width, device=masks.device, dtype=torch.float32)


def positions(numbers: Tensor, width: int) -> Tensor:
    """(row, column) of pixels given by their numbers: (...) -> float32 (..., 2)."""
    return torch.stack([numbers // width, numbers % width], dim=-1).float()


def _iterations(pixels: int) -> int:
    """Enough for spirals, combs and noise near the percolation threshold, which need the most (see the tests)."""
    return math.ceil(math.log2(max(2, pixels)) / _SHORTCUTS_PER_ITERATION) + 1


def _lowest_neighbour(values: Tensor) -> Tensor:
    """The smallest value of each pixel and its eight neighbours, int64 (N, H, W)."""
    return -F.max_pool2d(-values.float(), 3, 1, 1).long()  # exact: numbers of pixels are far below 2**24


def _run_length(regions: Tensor, border: bool, far: float) -> Tensor:
    """Distance along the column to the nearest pixel outside, at most `far`: float32 (N, H, W)."""
    height = regions.shape[-2]
    rows = pixel_grid(regions)[0]
    edges = (-1.0, float(height)) if border else (-far, height - 1 + far)
    above = torch.where(regions, edges[0], rows).cummax(1).values
    below = torch.where(regions, edges[1], rows).flip(1).cummin(1).values.flip(1)
    return torch.minimum(rows - above, below - rows)
