# SPDX-License-Identifier: Apache-2.0
"""The simulated user of training: the same behaviour row by row with SciPy, or for a whole batch on its device.

On a CPU, SciPy is by far the faster. On a GPU it would make training wait for every mask, so a whole batch is computed
in torch without waiting. Then rows that a task does not apply to stay in the batch, with weight 0.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kprism_model.interaction import batched_clicks, batched_masks, batched_scribbles
from kprism_model.interaction.batched_masks import CORRUPTION_CHANCES, MOVE_CHANCES
from kprism_model.interaction.batched_scribbles import SCRIBBLE_CHANCES, Scribbles
from kprism_model.interaction.clicks import next_clicks, simulate_scribble
from kprism_model.interaction.corrupted_masks import corrupted_masks
from kprism_model.interaction.propagated_masks import propagated_masks
from kprism_model.network.prompts import PADDING
from kprism_model.scribbles import SCRIBBLE_POINTS, scribble_points

_NEGATIVE_REACH = 8  # a negative scribble lies at most this many pixels outside the object


class RowSelection(NamedTuple):
    """Rows of a batch for one task: their numbers (N,), and their weights (N,), None if all have the same weight."""

    numbers: Tensor
    weight: Tensor | None


def select_rows(applies: Tensor) -> RowSelection | None:
    """The rows where `applies` (B,) is true, without weights; None if there are none."""
    numbers = applies.nonzero().flatten()
    return RowSelection(numbers, None) if len(numbers) else None


class Clicks(Protocol):
    """Who clicks. Masks (N, 1, H, W) are float32 of 0 and 1, predictions probabilities."""

    def clicks(self, predictions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """One click a row on the largest error: points (N, 1, 2) and labels (N, 1); padding if there is no error."""


class SimulatedUser(Clicks, Protocol):
    """The user's part in training. Masks (N, 1, H, W) are float32 of 0 and 1, predictions probabilities."""

    def rows(self, applies: Tensor) -> RowSelection | None:
        """The rows for a task that applies where `applies` (B,) is true; None if there are none."""

    def scribbles(self, masks: Tensor) -> Scribbles:
        """A positive scribble for each row and, in half of the rows, a negative one close to the object."""

    def corrupted_masks(self, masks: Tensor, predictions: Tensor) -> Tensor:
        """A mask to correct for each row, shaped as `masks`: half of the time its prediction, else a synthetic one."""

    def propagated_masks(self, masks: Tensor) -> Tensor:
        """Simulated masks of the slice before, shaped as `masks`."""


class CentralClicks:
    """Clicks on the deepest pixel of the largest error, without chance: as in evaluation."""

    def clicks(self, predictions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """See `Clicks`."""
        predicted, target = predictions[:, 0] > 0.5, masks[:, 0] > 0.5
        if masks.device.type != "cpu":
            points, labels = batched_clicks.next_clicks(predicted, target)
            return points[:, None], labels[:, None]
        found, signs = next_clicks(predicted.numpy(), target.numpy())
        return torch.from_numpy(found)[:, None], torch.from_numpy(signs)[:, None]


class RowwiseUser:
    """SciPy, row by row; a task gets only the rows that it applies to."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def rows(self, applies: Tensor) -> RowSelection | None:
        """See `SimulatedUser`."""
        return select_rows(applies)

    def clicks(self, predictions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """See `SimulatedUser`."""
        predicted, target = ((x[:, 0] > 0.5).cpu().numpy() for x in (predictions, masks))
        points, labels = next_clicks(predicted, target, rng=self._rng)
        return torch.from_numpy(points)[:, None].to(masks.device), torch.from_numpy(labels)[:, None].to(masks.device)

    def scribbles(self, masks: Tensor) -> Scribbles:
        """See `SimulatedUser`."""
        drawn = torch.zeros(len(masks), 2, *masks.shape[-2:])
        points = torch.zeros(len(masks), 2 * SCRIBBLE_POINTS, 2)
        labels = torch.full((len(masks), 2 * SCRIBBLE_POINTS), PADDING)
        for row, mask in enumerate((masks[:, 0] > 0.5).cpu().numpy()):
            scribble = simulate_scribbles(mask, self._rng)
            drawn[row, 0] = torch.from_numpy(scribble == 1)
            drawn[row, 1] = torch.from_numpy(scribble == -1)
            chosen, signs = scribble_points(scribble)
            points[row, : len(chosen)] = torch.from_numpy(chosen)
            labels[row, : len(chosen)] = torch.from_numpy(signs)
        return Scribbles(*(part.to(masks.device) for part in (drawn, points, labels)))

    def corrupted_masks(self, masks: Tensor, predictions: Tensor) -> Tensor:
        """See `SimulatedUser`."""
        return corrupted_masks(masks, predictions, self._rng)

    def propagated_masks(self, masks: Tensor) -> Tensor:
        """See `SimulatedUser`."""
        return propagated_masks(masks, self._rng)


class BatchedUser:
    """Torch, a batch at a time, on `device` and without waiting for it; a task gets all rows."""

    def __init__(self, rng: np.random.Generator, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))

    def rows(self, applies: Tensor) -> RowSelection | None:
        """See `SimulatedUser`."""
        return RowSelection(torch.arange(len(applies), device=applies.device), applies.float())

    def clicks(self, predictions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """See `SimulatedUser`."""
        chance = self._chance(masks, 1)[:, 0]
        points, labels = batched_clicks.next_clicks(predictions[:, 0] > 0.5, masks[:, 0] > 0.5, chance)
        return points[:, None], labels[:, None]

    def scribbles(self, masks: Tensor) -> Scribbles:
        """See `SimulatedUser`."""
        return batched_scribbles.scribbles(masks[:, 0] > 0.5, self._chance(masks, SCRIBBLE_CHANCES))

    def corrupted_masks(self, masks: Tensor, predictions: Tensor) -> Tensor:
        """See `SimulatedUser`."""
        chance = self._chance(masks, CORRUPTION_CHANCES)
        return batched_masks.corrupted_masks(masks[:, 0] > 0.5, predictions[:, 0] > 0.5, chance)[:, None].float()

    def propagated_masks(self, masks: Tensor) -> Tensor:
        """See `SimulatedUser`."""
        return batched_masks.moved_masks(masks[:, 0] > 0.5, self._chance(masks, MOVE_CHANCES))[:, None].float()

    def _chance(self, masks: Tensor, count: int) -> Tensor:
        return torch.rand(len(masks), count, generator=self._generator, device=masks.device)


def simulated_user(rng: np.random.Generator, device: torch.device) -> SimulatedUser:
    """The user for a device: SciPy on the CPU, batched on any other device."""
    return RowwiseUser(rng) if device.type == "cpu" else BatchedUser(rng, device)


def simulate_scribbles(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int8]:
    """A scribble inside a mask (H, W), 1, and half of the time one close outside it, -1; 0 elsewhere."""
    scribble = simulate_scribble(mask, rng).astype(np.int8)
    if rng.random() < 0.5:
        around = ndimage.binary_dilation(mask, iterations=_NEGATIVE_REACH) & ~ndimage.binary_dilation(mask)
        if around.any():
            scribble[simulate_scribble(around, rng)] = -1
    return scribble
