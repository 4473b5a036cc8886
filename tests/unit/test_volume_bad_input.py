# SPDX-License-Identifier: Apache-2.0
"""Volumes and prompts that are unusual or wrong: a right answer, or a sentence that names the value.

Volumes and requests of a wrong form are refused in `test_volume.py`, and volumes of one slice are segmented there.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.orientation import SliceOrientation
from kprism_model.predictor import Predictor
from kprism_model.volumes.next_slice import next_slice
from kprism_model.volumes.predictor import PropagationRules, StructurePrompts, VolumePredictor, VoxelClick
from kprism_model.volumes.prompt_history import PromptHistory
from kprism_model.volumes.prompts import PromptsBySlice

SHAPE = (20, 26, 9)  # x, y, z
FOLLOW_ALL = PropagationRules(presence=0)
"""Random weights are sure of nothing; with these rules they follow all the same."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(native_size=32)), ClassRegistry(("a", "b", "c", "d")))


def body(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A bright ellipsoid, a third as long as the volume along each axis, in noise."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.1
    return (100 * inside + np.random.default_rng(0).normal(50, 5, shape)).astype(np.float32)


def ready(predictor: Predictor, array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 3)) -> VolumePredictor:
    volume = VolumePredictor(predictor, rules=FOLLOW_ALL)
    volume.set_volume(array, np.diag([*spacing, 1.0]))
    return volume


def clicks(*signed: tuple[int, int, int, bool]) -> StructurePrompts:
    return StructurePrompts([VoxelClick((i, j, k), positive) for i, j, k, positive in signed])


def planes(mask: np.ndarray) -> list[int]:
    return [int(k) for k in np.flatnonzero(mask.any(axis=(0, 1)))]


@pytest.mark.parametrize("k", [-1, 9, 10**9])
def test_a_click_on_a_slice_that_does_not_exist_is_refused(predictor: Predictor, k: int) -> None:
    with pytest.raises(ValueError, match=rf"'lump' is at \(9, 14, {k}\), outside the volume of shape \(20, 26, 9\)"):
        ready(predictor, body()).segment({"lump": clicks((9, 14, 4, True), (9, 14, k, True))})


@pytest.mark.parametrize("index", [4.5, float("nan"), float("inf")])
def test_a_click_between_slices_is_refused(predictor: Predictor, index: float) -> None:
    prompts = StructurePrompts([VoxelClick((9, 14, index), True)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'lump' is at \(9, 14, [a-z0-9.]+\); expected three whole voxel indices"):
        ready(predictor, body()).segment({"lump": prompts})


@pytest.mark.parametrize("what", ["scribbles", "initial_mask", "previous_mask"])
def test_drawings_on_more_slices_than_there_are_are_refused(predictor: Predictor, what: str) -> None:
    prompts = StructurePrompts([VoxelClick((9, 14, 4), True)], **{what: np.ones((20, 26, 10), np.int8)})
    with pytest.raises(ValueError, match=rf"{what} of 'lump' has shape \(20, 26, 10\), but the volume has shape"):
        ready(predictor, body()).segment({"lump": prompts})


@pytest.mark.parametrize("extent", [(-1, 3), (5, 4), (0, 9), (1, 2, 3), "all", 4, (0.0, 3.0)])
def test_ranges_of_slices_that_do_not_exist_are_refused(predictor: Predictor, extent: object) -> None:
    with pytest.raises(
        ValueError, match=r"slices are .*; expected 'slice', 'volume', or \(first, last\) within 0 to 8"
    ):
        ready(predictor, body()).segment({"lump": clicks((9, 14, 4, True))}, extent=extent)  # type: ignore[arg-type]


def test_a_structure_of_one_slice_between_two_empty_ones(predictor: Predictor) -> None:
    volume = ready(predictor, body())
    made = clicks((9, 14, 4, True), (9, 14, 3, False), (9, 14, 5, False))
    drawn = np.zeros(SHAPE, np.int8)
    drawn[8:11, 12:16, 4] = 1
    drawn[:, :, 3] = drawn[:, :, 5] = -1
    for prompts in (StructurePrompts(made.clicks, scribbles=drawn), StructurePrompts(scribbles=drawn)):
        mask = volume.segment({"lump": prompts}).masks["lump"]
        assert planes(mask.mask) == [4]
        assert next_slice(mask) is None


def test_a_volume_of_one_slice_has_no_other_to_look_at(predictor: Predictor) -> None:
    volume = ready(predictor, body((20, 26, 1)))
    for extent in ("slice", "volume", (0, 0)):
        mask = volume.segment({"lump": clicks((9, 14, 0, True))}, extent=extent).masks["lump"]
        assert mask.changed == (0,) and mask.mask[9, 14, 0]
        assert next_slice(mask) is None


def test_a_short_structure_in_a_thousand_slices(predictor: Predictor) -> None:
    volume = ready(predictor, np.random.default_rng(0).random((16, 16, 1000), dtype=np.float32), (1, 1, 1))
    made = clicks((8, 8, 480, False), (8, 8, 520, False), (8, 8, 500, True))
    counted: list[int] = []
    mask = volume.segment({"lump": made}, progress=counted.append).masks["lump"]
    assert sum(counted) <= 38  # the slices between the two that are clicked as empty
    assert mask.mask.shape == (16, 16, 1000) and mask.mask[8, 8, 500]
    assert set(planes(mask.mask)) <= set(range(481, 520))


def test_clicks_on_a_hundred_slices_from_the_last_to_the_first(predictor: Predictor) -> None:
    # Each clicked slice starts from the mask before, and that one from the mask before it, and so on.
    volume = VolumePredictor(predictor, rules=PropagationRules(presence=1))  # a structure ends at once
    volume.set_volume(np.random.default_rng(0).random((16, 16, 100), dtype=np.float32), np.eye(4))
    made = clicks(*((8, 8, k, True) for k in reversed(range(100))))
    mask = volume.segment({"lump": made}).masks["lump"]
    assert mask.prompted == tuple(range(100)) and mask.mask[8, 8].all()


@pytest.mark.parametrize("step", [1, -1])
def test_the_history_of_a_thousand_clicked_slices(step: int) -> None:
    orientation = SliceOrientation.of(np.eye(4), (16, 16, 1000))
    made = clicks(*((8, 8, k, True) for k in range(0, 1000, 2)[::step]))
    history = PromptHistory(PromptsBySlice.of("lump", made, orientation), (0, 999))
    assert [one.number for one in history.in_order()] == list(range(0, 1000, 2))[::step]
    assert len({one.key for one in history.prompted_slices()}) == 500
    assert [(one.first, one.last) for one in history.slice_ranges()] == [(k, k) for k in range(1, 1000, 2)]


@pytest.mark.parametrize(
    ("spacing", "shape", "plane"),
    [
        ((1, 1, 20), (20, 26, 9), "axial"),
        ((20, 1, 1), (9, 20, 26), "sagittal"),
        ((0.05, 0.05, 1), (20, 26, 9), "axial"),
    ],
)
def test_slices_twenty_times_as_far_apart_as_pixels(
    predictor: Predictor, spacing: tuple[float, float, float], shape: tuple[int, int, int], plane: str
) -> None:
    volume = ready(predictor, body(shape), spacing)
    assert volume.volume.orientation.plane == plane and len(volume.volume) == 9
    middle = tuple(side // 2 for side in shape)
    mask = volume.segment({"lump": clicks((*middle, True))}).masks["lump"]
    assert mask.mask.shape == shape and mask.mask[middle]
    assert len(mask.slices) == 9


@pytest.mark.parametrize("value", [0, -1000, 1e30])
def test_a_volume_of_one_value_gives_the_pixels_that_were_clicked(predictor: Predictor, value: float) -> None:
    volume = ready(predictor, np.full(SHAPE, value, np.float32))
    assert not np.asarray(volume.volume.images).any()
    prompts = clicks((9, 14, 4, True), (2, 3, 4, False))
    answer = volume.segment({"lump": prompts})
    mask = answer.masks["lump"].mask
    assert mask[9, 14, 4] and not mask[2, 3, 4]
    assert answer.index_map(["lump"]).max() == 1
    assert volume.predict_classes(["a", "b"]).max() <= 2


def test_slices_without_a_number_count_as_the_darkest(predictor: Predictor) -> None:
    holed, filled = body(), body()
    holed[:, :, 4:6], holed[3, 3, 2], holed[4, 4, 2] = np.nan, np.inf, -np.inf
    filled[:, :, 4:6] = np.nanmin(holed[np.isfinite(holed)])
    filled[3, 3, 2], filled[4, 4, 2] = holed[np.isfinite(holed)].max(), holed[np.isfinite(holed)].min()
    prompts = {"lump": clicks((9, 14, 4, True), (9, 14, 7, True))}
    one, other = (ready(predictor, array).segment(prompts).masks["lump"] for array in (holed, filled))
    assert np.isfinite(list(one.confidence.values())).all()
    assert one.mask[9, 14, 4] and one.mask[9, 14, 7]
    np.testing.assert_array_equal(one.mask, other.mask)


def test_a_volume_without_any_number_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="no finite value"):
        ready(predictor, np.full(SHAPE, np.nan, np.float32))


def test_structures_that_cross_share_no_voxel_and_keep_their_clicks(predictor: Predictor) -> None:
    volume = ready(predictor, body())
    along, across = np.zeros(SHAPE, np.int8), np.zeros(SHAPE, np.int8)
    along[9:12, 2:24, 2], across[2:18, 12:15, 6] = 1, 1
    structures = {
        "along": StructurePrompts([VoxelClick((10, 13, 4), True)], scribbles=along),
        "across": StructurePrompts([VoxelClick((10, 14, 4), True)], scribbles=across),
        "through": clicks((10, 12, 0, True), (10, 12, 8, True)),
    }
    answer = volume.segment(structures)
    masks = {name: one.mask for name, one in answer.masks.items()}
    assert sum(mask.astype(int) for mask in masks.values()).max() == 1
    for name, prompts in structures.items():
        assert all(masks[name][click.voxel] for click in prompts.clicks)
    assert masks["along"][along > 0].all() and masks["across"][across > 0].all()
    labels = answer.index_map(list(structures))
    for value, name in enumerate(structures, 1):
        np.testing.assert_array_equal(labels == value, masks[name])
