# SPDX-License-Identifier: Apache-2.0
"""Initial masks for a whole batch, computed on its device, as in `propagated_masks` and `corrupted_masks`.

The rules and limits are the same as row by row, which is used for training on a CPU. Randomness is an input: `chance`
are tensors of numbers that are uniform in [0, 1). Masks are (N, H, W) booleans; the result for an empty mask is finite
but has no meaning.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kprism_model.interaction.batched_regions import centroid, pixel_grid, squared_distance
from kprism_model.interaction.corrupted_masks import BLOB_RADII, CUT_SHARES, PREDICTION_CHANCE
from kprism_model.interaction.propagated_masks import LARGE_MOTION, SLICE_TO_SLICE_MOTION, MotionLimits

MOVE_CHANCES = 6
"""Random numbers for one moved mask."""

_BLOB_CHANCES = 5
_KINDS = 4  # of corrupted masks: moved far, cut, joined, blob

CORRUPTION_CHANCES = 2 + MOVE_CHANCES + 2 + 1 + 2 * _BLOB_CHANCES
"""Random numbers for one corrupted mask."""


def moved_masks(masks: Tensor, chance: Tensor, limits: MotionLimits = SLICE_TO_SLICE_MOTION) -> Tensor:
    """Each mask rotated, stretched, shifted and made thicker or thinner within `limits`.

    `chance` (N, `MOVE_CHANCES`). A mask that would become empty is returned unchanged.
    """
    height, width = masks.shape[-2:]
    turn, down, right, move_down, move_right, thicker = (2 * chance - 1).unbind(1)
    radius, centre = _radius(masks), centroid(masks)
    angle = math.radians(limits.turn) * turn
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    goal = centre + radius[:, None] * limits.move * torch.stack([move_down, move_right], dim=1)
    rows, columns = pixel_grid(masks)
    # From the new mask's pixels back to the old one's: stretched, then turned, about the centre.
    stretched_rows = (rows - goal[:, 0, None, None]) * (limits.scale * down).exp()[:, None, None]
    stretched_columns = (columns - goal[:, 1, None, None]) * (limits.scale * right).exp()[:, None, None]
    from_row = centre[:, 0, None, None] + cos * stretched_rows - sin * stretched_columns
    from_column = centre[:, 1, None, None] + sin * stretched_rows + cos * stretched_columns
    grid = torch.stack([2 * from_column / (width - 1) - 1, 2 * from_row / (height - 1) - 1], dim=-1)
    inside, outside = squared_distance(torch.cat([masks, ~masks]), border=False).sqrt().chunk(2)
    signed = F.grid_sample((inside - outside)[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
    moved = signed > (radius * limits.thickness * thicker)[:, None, None]
    return torch.where(moved.flatten(1).any(1)[:, None, None], moved, masks)


def corrupted_masks(masks: Tensor, predictions: Tensor, chance: Tensor) -> Tensor:
    """A mask to correct for each true mask: half of the time its prediction, if not empty, else a synthetic one.

    `predictions` (N, H, W) boolean; `chance` (N, `CORRUPTION_CHANCES`).
    """
    own, kind, moved, cut, blobs, shapes = chance.split([1, 1, MOVE_CHANCES, 2, 1, 2 * _BLOB_CHANCES], dim=1)
    first, second = (_blobs(masks, part) for part in shapes.chunk(2, dim=1))
    joined = masks | first | (second & (blobs < 0.5)[..., None])
    kinds = torch.stack([moved_masks(masks, moved, LARGE_MOTION), _cut(masks, cut), joined, first], dim=1)
    number = (kind * _KINDS).long().clamp(max=_KINDS - 1)[..., None, None].expand(-1, 1, *masks.shape[1:])
    made = kinds.gather(1, number)[:, 0]
    predicted = predictions.flatten(1).any(1) & (own[:, 0] < PREDICTION_CHANCE)
    return torch.where(predicted[:, None, None], predictions, made)


def _cut(masks: Tensor, chance: Tensor) -> Tensor:
    """The part of each mask on one side of a straight cut; `chance` (N, 2)."""
    angle, share = 2 * math.pi * chance[:, :1], CUT_SHARES[0] + (CUT_SHARES[1] - CUT_SHARES[0]) * chance[:, 1:]
    rows, columns = pixel_grid(masks)
    along = rows * angle.sin()[..., None] + columns * angle.cos()[..., None]
    along = torch.where(masks, along, math.inf).flatten(1)
    last = (masks.flatten(1).sum(1, keepdim=True) - 1).clamp(min=0)
    limit = along.sort(1).values.gather(1, (share * last).long())
    return (along <= limit).view_as(masks) & masks


def _blobs(masks: Tensor, chance: Tensor) -> Tensor:
    """An ellipse anywhere in each image; `chance` (N, 5)."""
    height, width = masks.shape[-2:]
    row, column, high, wide, turn = (part[:, None, None] for part in chance.unbind(1))
    rows, columns = pixel_grid(masks)
    down = (rows / height - row) / (BLOB_RADII[0] + (BLOB_RADII[1] - BLOB_RADII[0]) * high)
    right = (columns / width - column) / (BLOB_RADII[0] + (BLOB_RADII[1] - BLOB_RADII[0]) * wide)
    cos, sin = (math.pi * turn).cos(), (math.pi * turn).sin()
    return (down * cos - right * sin).square() + (down * sin + right * cos).square() <= 1


def _radius(masks: Tensor) -> Tensor:
    """The radius of a disc with each mask's area: (N,)."""
    return (masks.flatten(1).sum(1) / math.pi).sqrt()
