# SPDX-License-Identifier: Apache-2.0
"""Groups of views of one slice: the same object in each, tones that differ, and any slice will do."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.data import region_maps
from kprism_model.data.augment import Augmentation
from kprism_model.data.batch import NO_CLASS, Batch
from kprism_model.data.building import build_store
from kprism_model.data.region_tasks import RegionSampler, RegionTasks, tone_curves
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64
STILL = RegionTasks(zoom=1.0, tone=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Two data sets of pictures, whose labels are elsewhere than what is seen in "unlabelled"."""
    folder = tmp_path_factory.mktemp("data")
    seen = [rectangle((SIZE, SIZE), slice(r, r + 22), slice(12, 40)) for r in (6, 14, 22)]
    noise = np.random.default_rng(0).normal(0, 5, (SIZE, SIZE, 1))
    pictures = [np.clip(60 + 120 * label[..., None] + noise + [0, 20, 40], 0, 255).astype(np.uint8) for label in seen]
    sets = [
        write_dataset(folder / "labelled", seen, images=pictures),
        write_dataset(folder / "unlabelled", [0 * label for label in seen], images=pictures, classes=["other"]),
    ]
    return build_store(sets, folder / "store", size=SIZE, progress=False)


def group(
    store: SliceStore, seed: int = 0, tasks: RegionTasks | None = None, augmentation: Augmentation | None = None
) -> tuple[torch.Tensor, torch.Tensor, str]:
    sampler = RegionSampler(store, {"labelled": 0.0}, tasks)
    generator = torch.Generator().manual_seed(seed)
    return sampler.group(3, SIZE, generator, augmentation or Augmentation(), np.random.default_rng(seed))


def test_shapes_and_values(store: SliceStore) -> None:
    for seed in range(6):
        images, masks, name = group(store, seed)
        assert images.shape == (3, 3, SIZE, SIZE) and masks.shape == (3, 1, SIZE, SIZE)
        assert images.dtype == masks.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        assert set(masks.unique().tolist()) == {0.0, 1.0} and name == "unlabelled"
        assert (masks.sum(dim=(1, 2, 3)) >= 16).all()


def test_views_show_the_same_object_under_different_changes(store: SliceStore) -> None:
    images, masks, _ = group(store, tasks=STILL, augmentation=Augmentation.none())
    assert torch.equal(masks[0], masks[1]) and torch.equal(images[0], images[2])
    images, masks, _ = group(store)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_objects_keep_their_place_in_the_image(store: SliceStore) -> None:
    """The object's colour is that of the object in every view, wherever a change of place has put it."""
    geometry = replace(Augmentation.none(), zoom=1.6, rotation=20.0, placement=1.0, horizontal_flip=0.5)
    for seed in range(8):
        images, masks, _ = group(store, seed, replace(STILL, zoom=1.6), geometry)
        inside = [image[:, mask[0] > 0].mean(1) for image, mask in zip(images, masks, strict=True)]
        torch.testing.assert_close(inside[0], inside[1], atol=0.12, rtol=0)


def test_the_numbers_alone_decide(store: SliceStore) -> None:
    one, other = group(store, 3), group(store, 3)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(one[1], group(store, 4)[1])


def test_views_differ_in_tone_by_chance(store: SliceStore) -> None:
    plain = Augmentation.none()
    images, masks, _ = group(store, tasks=replace(STILL, tone=1.0), augmentation=plain)
    assert torch.equal(masks[0], masks[1]) and not torch.allclose(images[0], images[1], atol=0.05)


def test_tone_curves_are_smooth_and_use_the_whole_range() -> None:
    for seed in range(20):
        curves = tone_curves(4, np.random.default_rng(seed), 0.4)
        assert curves.shape == (4, 256) and curves.dtype == np.uint8
        assert (curves.min(axis=1) == 0).all() and (curves.max(axis=1) == 255).all()
        assert np.abs(np.diff(curves.astype(int), n=2)).max() <= 3
    assert (np.diff(curves.astype(int)) < 0).any()


def test_individuality_sets_how_much_curves_differ() -> None:
    def evenly_spaced(value: float) -> float:
        curves = [tone_curves(6, np.random.default_rng(seed), value).astype(float) for seed in range(10)]
        return float(np.mean([one.std(axis=0).mean() for one in curves]))

    assert evenly_spaced(0.0) == 0 and 5 < evenly_spaced(0.3) < evenly_spaced(1.0)


def test_data_sets_are_drawn_by_weight(store: SliceStore) -> None:
    sampler, rng = RegionSampler(store, {"labelled": 3.0}), np.random.default_rng(0)
    names = Counter(sampler.group(1, 32, torch.Generator(), Augmentation(), rng)[2] for _ in range(40))
    assert names["labelled"] == pytest.approx(30, abs=11)
    with pytest.raises(ValueError, match="a weight above 0"):
        RegionSampler(store, {"labelled": 0.0, "unlabelled": 0.0})


def test_empty_slices_give_empty_masks(tmp_path: Path) -> None:
    empty = np.zeros((SIZE, SIZE), np.uint8)
    folder = write_dataset(tmp_path / "unlabelled", [empty], images=[empty])
    images, masks, _ = group(build_store([folder], tmp_path / "store", size=SIZE, progress=False))
    assert not masks.any() and images.shape == (3, 3, SIZE, SIZE)


def test_batches_hold_such_groups_whose_views_refer_to_each_other(store: SliceStore) -> None:
    mixture = Mixture(synthetic=0.0, regions=1.0, references=(0.0, 1.0))
    batch = Sampler(store, seed=0, mixture=mixture).batch(6, step=0, size=32)
    assert set(batch.dataset) <= {"labelled", "unlabelled"} and (batch.class_index == NO_CLASS).all()
    assert (batch.absent_classes == NO_CLASS).all() and torch.equal(batch.objects, batch.masks)
    assert [sorted(row) for row in batch.references.tolist()] == [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]


def test_a_batch_is_the_same_whether_its_maps_are_computed_or_were_kept(
    store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store.path, tmp_path / "new", ignore=shutil.ignore_patterns("regions"))

    def batches() -> list[Batch]:
        sampler = Sampler(SliceStore.open(tmp_path / "new"), seed=0, mixture=Mixture(synthetic=0.2, regions=0.5))
        return [sampler.batch(6, step=step, size=32) for step in range(4)]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed a map that is kept")

    computed = batches()
    assert list((tmp_path / "new").glob("*/regions/*.zlib"))
    monkeypatch.setattr(region_maps, "superpixels", refuse)
    for before, now in zip(computed, batches(), strict=True):
        assert before.dataset == now.dataset
        assert torch.equal(before.images, now.images) and torch.equal(before.masks, now.masks)
        assert torch.equal(before.references, now.references)


def test_their_share_is_that_of_the_mixture(store: SliceStore) -> None:
    sampler = Sampler(store, seed=0, mixture=Mixture(absent=0.0, synthetic=0.2, regions=0.3, references=(1.0,)))
    batches = [sampler.batch(40, step=step, size=32) for step in range(5)]
    kinds = Counter(
        "class" if index >= 0 else name if name == "synthetic" else "regions"
        for batch in batches
        for index, name in zip(batch.class_index.tolist(), batch.dataset, strict=True)
    )
    assert kinds["regions"] / 200 == pytest.approx(0.3, abs=0.18)  # four standard deviations of 100 pairs
    assert kinds["class"] / 200 == pytest.approx(0.5, abs=0.2)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RegionTasks.tone must lie in \[0, 1\], got 2"):
        RegionTasks(tone=2)
    with pytest.raises(ValueError, match=r"must not sum to more than 1, got 0\.8 and 0\.3"):
        Mixture(synthetic=0.8)
