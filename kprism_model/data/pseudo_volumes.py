# SPDX-License-Identifier: Apache-2.0
"""Volumes made of one picture: from slice to slice its structure moves, changes its shape, and shrinks to nothing.

Any structure of any modality can thus be propagated in training. A slice is the picture, resampled: a smooth
deformation grows from slice to slice, and inside an ellipse around the structure a radial power map makes it smaller or
larger, while the picture outside of the ellipse stays as it is. The map is monotone, so nothing folds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SMALLEST_RADIUS = 0.08
"""A structure whose radius has shrunk to this share has ended."""

_ELLIPSE_MARGIN = 1.6
"""The changed ellipse is this many times as large as the structure."""


@dataclass(frozen=True)
class SliceChanges:
    """How much neighbouring slices differ, at most; drawn for each pseudo-volume.

    move, deformation: in radii of the structure. radius: factor of the structure's radius, as a logarithm, in slices
    before the end. last: the structure ends after 1 to this many slices. grid: control points of the deformation.
    """

    move: float = 0.22
    deformation: float = 0.12
    radius: float = 0.15
    last: int = 7
    grid: int = 6


CHANGES = SliceChanges()


def slice_grids(
    mask: NDArray[np.bool_], count: int, ends: bool, rng: np.random.Generator, changes: SliceChanges = CHANGES
) -> tuple[Tensor, NDArray[np.bool_]]:
    """Sampling grids (count, H, W, 2) of the slices of a pseudo-volume, and whether each shows the structure, (count,).

    `mask` (H, W) is the structure in the first slice, which is the picture itself; it must not be empty. A grid holds
    positions (column, row) in [-1, 1] as `grid_sample` takes them. With `ends`, the structure ends within `count`.
    """
    centre, axes, extent = _ellipse(mask)
    radius = float(np.sqrt(abs(np.linalg.det(axes))))
    factors = _radius_factors(count, ends, rng, changes)
    height, width = mask.shape
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)[0]
    deformation = _deformations(count, radius, (height, width), rng, changes)
    steps = rng.uniform(-1, 1, 2) * changes.move * 0.7 + rng.uniform(-1, 1, (count, 2)) * changes.move * 0.5
    steps[0] = 0
    moves = radius * steps.cumsum(axis=0)
    to_ellipse = torch.from_numpy(np.linalg.inv(axes)).float()
    from_ellipse = torch.from_numpy(axes).float()
    origin = torch.from_numpy(centre).float()
    limit = _ELLIPSE_MARGIN * extent
    grids = []
    for number in range(count):
        move = torch.from_numpy(moves[number]).float()
        # The structure moves, and what is far from it stays.
        position = identity + deformation[number] - origin
        near = ((position - move) @ to_ellipse.T).norm(dim=-1, keepdim=True) / (1.5 * limit)
        moved = position - move * (1 - near.clamp(max=1).square()).square()
        scaled = moved @ to_ellipse.T
        away = scaled.norm(dim=-1, keepdim=True).clamp(min=1e-4)
        power = 1 / (1 + math.log(factors[number]) / math.log(1 / _ELLIPSE_MARGIN))
        stretched = torch.where(away < limit, limit * (away / limit) ** power / away, 1.0)
        # The radial map comes last, so that no deformation brings an ended structure back.
        grids.append(origin + (scaled * stretched) @ from_ellipse.T)
    return torch.stack(grids), factors > SMALLEST_RADIUS


def _ellipse(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Centre (column, row) and axes (2, 2) of the ellipse with a mask's moments, in [-1, 1], and how far it reaches."""
    rows, columns = np.nonzero(mask)
    size = np.array([mask.shape[1], mask.shape[0]])
    points = (2 * np.stack([columns, rows], axis=1) + 1) / size - 1
    centre = points.mean(axis=0)
    spread = np.cov((points - centre).T, bias=True) + np.diag((1 / size) ** 2)
    axes = 2 * np.linalg.cholesky(spread)
    extent = float(np.linalg.norm((points - centre) @ np.linalg.inv(axes).T, axis=1).max())
    return centre, axes, max(extent, 1.0)


def _radius_factors(count: int, ends: bool, rng: np.random.Generator, changes: SliceChanges) -> NDArray[np.float64]:
    """The structure's radius in each slice, relative to the first one; below `SMALLEST_RADIUS` from its end on."""
    drift = rng.uniform(-1, 1) * changes.radius + rng.uniform(-1, 1, count) * changes.radius / 2
    drift[0] = 0
    factors = np.exp(drift.cumsum()).clip(0.35, 1.25)
    if ends:
        # An ellipsoid ends with a round tip; a cylinder is cut off.
        last = int(rng.integers(1, max(2, min(changes.last, count - 1))))
        roundness = rng.uniform(0.2, 1.0)
        along = np.clip(np.arange(count) / last, 0, 1)
        tip = np.sqrt(np.clip(1 - along**2, 0, 1)) ** roundness
        tip[along >= 1] = 0
        factors = factors * tip
    radii: NDArray[np.float64] = np.maximum(factors, SMALLEST_RADIUS / 2)
    return radii


def _deformations(
    count: int, radius: float, size: tuple[int, int], rng: np.random.Generator, changes: SliceChanges
) -> Tensor:
    """Smooth displacements (count, H, W, 2) that grow from slice to slice, in [-1, 1]; none in the first slice."""
    shape = (count, 2, changes.grid, changes.grid)
    steady, jitter = rng.normal(0, 1, (1, *shape[1:])), rng.normal(0, 0.7, shape)
    amount = rng.uniform(0.2, 1) * changes.deformation * radius
    steps = amount * (steady + jitter)
    steps[0] = 0
    points = torch.from_numpy(steps.cumsum(axis=0)).float()
    return F.interpolate(points, size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
