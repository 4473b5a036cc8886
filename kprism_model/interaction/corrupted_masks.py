# SPDX-License-Identifier: Apache-2.0
"""Wrong masks to correct by clicks, as another mode, another program or a colleague leaves them.

What the network itself answered by class or by reference is the most telling kind; the others are made up of the true
mask, so that no habit of the present weights limits what is practised: moved, cut, grown together with something else,
or something else altogether. A network that never met them takes any mask for nearly right, and then a bad first mask
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

PREDICTION_CHANCE = 0.5  # chance of the network's own answer, where there is one
CUT_SHARES = (0.2, 0.8)  # share of the mask that a cut leaves
BLOB_RADII = (0.05, 0.3)  # of made-up blobs, in sides of the image


def corrupted_masks(masks: Tensor, answers: Tensor, rng: np.random.Generator) -> Tensor:
    """A mask to correct for each of N true ones.

    `masks` (N, 1, H, W) of 0 and 1, none empty; `answers` of the same shape: probabilities that the network gave for
    these images in other modes, all 0 where it gave none. Returns 0 and 1, float32, of the same shape.
    """
    true = (masks[:, 0] > 0.5).cpu().numpy()
    own = (answers[:, 0] > 0.5).cpu().numpy()
    found = [
        answer if answer.any() and rng.random() < PREDICTION_CHANCE else _KINDS[rng.integers(len(_KINDS))](mask, rng)
        for mask, answer in zip(true, own, strict=True)
    ]
    return torch.from_numpy(np.stack(found)[:, None].astype(np.float32)).to(masks.device)


def _far(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """The mask, moved, turned, stretched and grown or shrunk by much."""
    return moved_mask(mask, rng, LARGE_MOTION)


def _cut(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """What a straight cut leaves of the mask."""
    places = np.argwhere(mask)
    angle = rng.uniform(0, 2 * np.pi)
    along = places @ np.array([np.sin(angle), np.cos(angle)])
    left = places[along <= np.quantile(along, rng.uniform(*CUT_SHARES))]
    found = np.zeros_like(mask)
    found[tuple(left.T)] = True
    return found


def _joined(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """The mask and one or two blobs more."""
    found = mask.copy()
    for _ in range(rng.integers(1, 3)):
        found |= _blob(mask, rng)
    return found


def _blob(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """An ellipse anywhere in the image."""
    rows, columns = np.indices(mask.shape)
    centre, radii = rng.uniform(0, 1, 2) * mask.shape, rng.uniform(*BLOB_RADII, 2) * mask.shape
    angle = rng.uniform(0, np.pi)
    down, right = (rows - centre[0]) / radii[0], (columns - centre[1]) / radii[1]
    x, y = down * np.cos(angle) - right * np.sin(angle), down * np.sin(angle) + right * np.cos(angle)
    found: BoolArray = x**2 + y**2 <= 1
    return found


_KINDS: tuple[Callable[[BoolArray, np.random.Generator], BoolArray], ...] = (_far, _cut, _joined, _blob)
