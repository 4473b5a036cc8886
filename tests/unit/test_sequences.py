# SPDX-License-Identifier: Apache-2.0
"""Sequences of neighbouring slices: runs in data sets, pseudo-volumes of one picture, and batches of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kprism_model.data.pseudo_volumes import SliceChanges, slice_grids
from kprism_model.data.sequence_sampling import SequenceMixture, SequenceSampler
from kprism_model.data.sequences import slice_runs
from kprism_model.data.slices import SliceSet, SliceStore

SIDE = 64


def slice_set(names: list[str], case: list[int], number: list[int], name: str = "made") -> SliceSet:
    """Slices that show a bright disc of 8 pixels radius, a little further right in each; the last has none."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    discs = np.stack([np.hypot(rows - 30, columns - 20 - 2 * n) < 8 for n in number])
    discs[-1] = False
    return SliceSet(
        name=name,
        modality="MRI",
        anatomy="",
        classes={1: "disc"},
        case_names=tuple(names),
        patients=tuple(text.split("-")[0] for text in names),
        images=(40 + 180 * discs[..., None]).astype(np.uint8),
        labels=discs.astype(np.uint8),
        case=np.array(case),
        number=np.array(number),
        content=np.full((len(case), 2), SIDE),
        pixels=discs.sum(axis=(1, 2))[:, None],
    )


def volume(slices: int = 9) -> SliceStore:
    made = slice_set(["one"], [0] * slices, list(range(slices)))
    return SliceStore(Path("made"), "training", SIDE, (made,))


def test_runs_are_slices_of_one_case_in_order_of_position() -> None:
    made = slice_set(["one", "two"], [0, 0, 0, 1, 1, 1], [4, 2, 3, 0, 1, 9])
    assert [run.tolist() for run in slice_runs(made)] == [[1, 2, 0], [3, 4]]


def test_phases_of_a_beating_heart_are_runs_of_their_own() -> None:
    names = ["A-0008", "A-0028", "A-0048", "A-0015", "A-0035", "B-0088"]
    made = slice_set(names, list(range(6)), [0] * 6, name="scd_cardiac_mr")
    assert [run.tolist() for run in slice_runs(made)] == [[0, 1, 2], [3, 4]]
    with pytest.raises(ValueError, match="'A-x' does not end in an image number"):
        slice_runs(replace(made, case_names=("A-x", *names[1:])))


@pytest.mark.parametrize("seed", range(6))
def test_the_structure_of_a_pseudo_volume_moves_smoothly_and_ends(seed: int) -> None:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = np.hypot(rows - 34, columns - 26) < 12
    grids, shown = slice_grids(mask, 8, True, np.random.default_rng(seed))
    source = torch.from_numpy(mask).float()[None, None].expand(8, -1, -1, -1)
    slices = F.grid_sample(source, grids, align_corners=False)[:, 0].numpy() > 0.5
    np.testing.assert_array_equal(slices[0], mask)  # the first slice is the picture itself
    assert shown[0] and not shown[-1] and (np.diff(shown.astype(int)) <= 0).all()
    for before, after, visible in zip(slices, slices[1:], shown[1:], strict=False):
        assert not visible or (before & after).any()
    assert slices[~shown].sum(axis=(1, 2)).max() < 0.05 * mask.sum()


def test_what_is_far_from_the_structure_stays_without_deformation() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[8:16, 8:16] = True
    grids, _ = slice_grids(mask, 5, True, np.random.default_rng(0), SliceChanges(deformation=0.0))
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, SIDE, SIDE], align_corners=False)[0]
    assert torch.allclose(grids[:, 40:, 40:], identity[40:, 40:].expand(5, -1, -1, -1), atol=1e-5)
    assert not torch.allclose(grids[-1, 8:16, 8:16], identity[8:16, 8:16], atol=0.05)


def test_slices_of_a_volume_go_past_its_structures_end_when_they_should() -> None:
    still = SequenceMixture(pseudo=0.0, ends=1.0, window=0.0, thick=0.0, blurred=0.0)
    batch = SequenceSampler(volume(), seed=0, mixture=still).batch(6, 3, step=0, size=SIDE)
    assert batch.images.shape == (6, 3, 3, SIDE, SIDE) and batch.masks.shape == (6, 3, 1, SIDE, SIDE)
    shown = batch.masks.flatten(2).any(dim=2)
    assert shown[:, 0].all() and not shown[:, -1].any()
    inner = SequenceSampler(volume(), seed=0, mixture=replace(still, ends=0.0)).batch(6, 3, step=0, size=SIDE)
    assert inner.masks.flatten(2).any(dim=2).all()


@pytest.mark.parametrize("pseudo", [0.0, 1.0])
def test_masks_lie_where_the_structure_is(pseudo: float) -> None:
    sampler = SequenceSampler(volume(), seed=1, mixture=SequenceMixture(pseudo=pseudo, blurred=0.0))
    batch = sampler.batch(8, 4, step=5, size=SIDE)
    inside, outside = batch.masks.expand_as(batch.images) > 0.5, batch.masks.expand_as(batch.images) < 0.5
    differences = [
        abs(float(image[mask].mean() - image[other].mean()))
        for image, mask, other in zip(
            batch.images.flatten(0, 1), inside.flatten(0, 1), outside.flatten(0, 1), strict=True
        )
        if mask.sum() > 300
    ]
    assert len(differences) > 10 and np.median(differences) > 0.2  # of 0.7 before changes of contrast


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    sampler = SequenceSampler(volume(), seed=1)
    one, same, other = (sampler.batch(2, 3, step=step, size=SIDE).images for step in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)
    with pytest.raises(ValueError, match="got 1 of 1"):
        sampler.batch(1, 1, step=0, size=SIDE)
    with pytest.raises(ValueError, match=r"SequenceMixture\.ends must lie in"):
        SequenceMixture(ends=1.5)
