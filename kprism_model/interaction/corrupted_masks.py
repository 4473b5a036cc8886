# SPDX-License-Identifier: Apache-2.0
"""Corrupted masks to correct by clicks, such as another mode, another program or a colleague may leave.

The network's own predictions by class or reference are the most realistic ones. The others are made from the true mask,
so that training is not limited to the errors of the present weights: the mask moved far, cut, joined with something
else, or replaced. A network that was never trained on them takes any mask as nearly right, and then a bad initial mask
costs more clicks than none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.interaction.propagated_masks import LARGE_MOTION, moved_mask

BoolArray = NDArray[np.bool_]

PREDICTION_CHANCE = 0.5
"""Chance of the network's own prediction, if there is one."""
CUT_SHARES = (0.2, 0.8)
"""Smallest and largest share of the mask that a cut leaves."""
BLOB_RADII = (0.05, 0.3)
"""Smallest and largest radius of blobs, as shares of the image's sides."""


def corrupted_masks(masks: Tensor, predictions: Tensor, rng: np.random.Generator) -> Tensor:
    """A mask to correct for each of N true masks.

    `masks` (N, 1, H, W) of 0 and 1, none empty; `predictions` of the same shape: the network's probabilities for these
    images in other modes, all 0 if there are none. Returns 0 and 1, float32, of the same shape.
    """
    true = (masks[:, 0] > 0.5).cpu().numpy()
    predicted = (predictions[:, 0] > 0.5).cpu().numpy()
    corrupted = [
        own if own.any() and rng.random() < PREDICTION_CHANCE else _KINDS[rng.integers(len(_KINDS))](mask, rng)
        for mask, own in zip(true, predicted, strict=True)
    ]
    return torch.from_numpy(np.stack(corrupted)[:, None].astype(np.float32)).to(masks.device)


def _far(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """The mask, moved, rotated, stretched and made thicker or thinner by large amounts."""
    return moved_mask(mask, rng, LARGE_MOTION)


def _cut(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """The part of the mask on one side of a straight cut."""
    places = np.argwhere(mask)
    angle = rng.uniform(0, 2 * np.pi)
    along = places @ np.array([np.sin(angle), np.cos(angle)])
    left = places[along <= np.quantile(along, rng.uniform(*CUT_SHARES))]
    part = np.zeros_like(mask)
    part[tuple(left.T)] = True
    return part


def _joined(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """The mask with one or two blobs added."""
    joined = mask.copy()
    for _ in range(rng.integers(1, 3)):
        joined |= _blob(mask, rng)
    return joined


def _blob(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """A random ellipse in the image, instead of the mask."""
    rows, columns = np.indices(mask.shape)
    centre, radii = rng.uniform(0, 1, 2) * mask.shape, rng.uniform(*BLOB_RADII, 2) * mask.shape
    angle = rng.uniform(0, np.pi)
    down, right = (rows - centre[0]) / radii[0], (columns - centre[1]) / radii[1]
    x, y = down * np.cos(angle) - right * np.sin(angle), down * np.sin(angle) + right * np.cos(angle)
    ellipse: BoolArray = x**2 + y**2 <= 1
    return ellipse


_KINDS: tuple[Callable[[BoolArray, np.random.Generator], BoolArray], ...] = (_far, _cut, _joined, _blob)
