# SPDX-License-Identifier: Apache-2.0
"""First masks for a whole batch, against the row-wise ones made from the same random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from kprism_model.interaction import batched_masks, corrupted_masks, propagated_masks
from kprism_model.interaction.batched_masks import CORRUPTION_CHANCES, MOVE_CHANCES
from kprism_model.interaction.propagated_masks import LARGE_MOTION, SLICE_TO_SLICE_MOTION, MotionLimits
from tests.unit.unsynchronised import Unsynchronised

SIZE = 72


class Given(np.random.Generator):
    """A generator whose uniform numbers are given, one after the other."""

    def __init__(self, chances: torch.Tensor) -> None:
        super().__init__(np.random.PCG64(0))
        self.chances = iter(chances.tolist())

    def uniform(self, low: float = 0, high: float = 1, size: Any = None) -> Any:  # type: ignore[override]
        drawn = np.array([next(self.chances) for _ in range(size or 1)])
        return low + (high - low) * (drawn if size else drawn[0])


def shapes(count: int, seed: int = 0) -> np.ndarray:
    """Blobs in the middle, of one part or several; the last ones are one pixel, a line, and a blob at the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((count, SIZE, SIZE)), (0, 6, 6))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    masks = (noise > 0) & (np.hypot(rows - SIZE / 2, columns - SIZE / 2) < 25)
    masks[-3:] = False
    masks[-3, 0, 5] = True
    masks[-2, 30, 10:60] = True
    masks[-1, 50:, 60:] = True
    return masks


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def chances(count: int, numbers: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, numbers, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("most", [SLICE_TO_SLICE_MOTION, LARGE_MOTION])
def test_masks_move_as_row_by_row(most: MotionLimits) -> None:
    masks, chance = shapes(40), chances(40, MOVE_CHANCES)
    found = batched_masks.moved_masks(torch.from_numpy(masks), chance, most).numpy()
    for row, mask in enumerate(masks):
        expected = propagated_masks.moved_mask(mask, Given(chance[row]), most)
        assert (found[row] != expected).sum() <= 0.02 * expected.sum() + 1 and found[row].any()


def test_cuts_and_blobs_are_those_of_row_by_row() -> None:
    masks = shapes(30)
    cut = batched_masks._cut(torch.from_numpy(masks), chances(30, 2)).numpy()
    blob = batched_masks._blobs(torch.from_numpy(masks), chances(30, 5)).numpy()
    for row, mask in enumerate(masks):
        assert (cut[row] != corrupted_masks._cut(mask, Given(chances(30, 2)[row]))).sum() <= 1
        assert (blob[row] != corrupted_masks._blob(mask, Given(chances(30, 5)[row]))).sum() <= 1
        assert cut[row].any() and not (cut[row] & ~mask).any()


def test_wrong_masks_are_of_all_kinds_and_the_answer_half_of_the_time() -> None:
    masks = torch.zeros(240, SIZE, SIZE, dtype=torch.bool)
    masks[:, 20:50, 24:48] = True
    answers = torch.zeros_like(masks)
    answers[:120, 2:9, 3:11] = True
    found = batched_masks.corrupted_masks(masks, answers, chances(240, CORRUPTION_CHANCES))
    own = (found == answers).flatten(1).all(1)
    assert 40 <= own[:120].sum() <= 80 and not own[120:].any()  # an empty answer is no mask to correct
    made = found[120:].numpy()
    true = masks[0].numpy()
    inside = np.array([not (mask & ~true).any() and dice(mask, true) < 1 for mask in made])  # cut, some moved and blobs
    around = np.array([not (true & ~mask).any() for mask in made])  # joined
    assert inside.mean() > 0.2 and 0.15 < around.mean() < 0.4
    rng = np.random.default_rng(0)
    rowwise = [corrupted_masks._KINDS[rng.integers(4)](true, rng) for _ in range(240)]
    scores = [np.mean([dice(mask, true) for mask in masks]) for masks in (made, rowwise)]
    assert scores[0] == pytest.approx(scores[1], abs=0.1)


def test_empty_masks_break_nothing() -> None:
    empty = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    assert not batched_masks.moved_masks(empty, chances(2, MOVE_CHANCES)).any()
    assert batched_masks.corrupted_masks(empty, empty, chances(2, CORRUPTION_CHANCES)).shape == empty.shape


def test_nothing_waits_for_the_device_and_the_graph_has_no_break() -> None:
    masks, answers = (torch.from_numpy(shapes(5, seed)) for seed in (0, 1))
    with Unsynchronised():
        moved = batched_masks.moved_masks(masks, chances(5, MOVE_CHANCES))
        wrong = batched_masks.corrupted_masks(masks, answers, chances(5, CORRUPTION_CHANCES))
    compiled = {
        f: torch.compile(f, fullgraph=True, backend="eager")
        for f in (batched_masks.moved_masks, batched_masks.corrupted_masks)
    }
    assert torch.equal(compiled[batched_masks.moved_masks](masks, chances(5, MOVE_CHANCES)), moved)
    assert torch.equal(compiled[batched_masks.corrupted_masks](masks, answers, chances(5, CORRUPTION_CHANCES)), wrong)


def test_waiting_would_be_found() -> None:
    with Unsynchronised(), pytest.raises(AssertionError, match="waits for the device"):
        float(torch.ones(3).sum())
    with Unsynchronised(), pytest.raises(AssertionError, match="boolean mask waits"):
        torch.ones(3)[torch.arange(3) > 1]
