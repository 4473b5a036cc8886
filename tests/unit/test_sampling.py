# SPDX-License-Identifier: Apache-2.0
"""What batches are made of: fair shares, the right references, honest absences, reproducible by seed and step."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from kprism_model.classes import ClassRegistry
from kprism_model.data.augment import Augmentation
from kprism_model.data.batch import NO_CLASS, Batch
from kprism_model.data.building import build_store
from kprism_model.data.prefetch import Prefetcher
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.data.synthetic import SYNTHETIC
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64
A = rectangle((SIZE, SIZE), slice(5, 25), slice(5, 25))
B = rectangle((SIZE, SIZE), slice(35, 60), slice(30, 50), value=2)
SPECK = rectangle((SIZE, SIZE), slice(40, 44), slice(40, 44))
BLOBS = SPECK + A + rectangle((SIZE, SIZE), slice(30, 40), slice(10, 20))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Two data sets: "pair" (both classes, either alone, nothing) and "blobs" (one class, always)."""
    folder = tmp_path_factory.mktemp("data")
    pair = write_dataset(
        folder / "pair",
        [A + B, A, B, B, 0 * A, A + B],
        classes=["first", "second"],
        patients=["p", "p", "q", "r", "s", "t"],
    )
    blobs = write_dataset(folder / "blobs", [BLOBS] * 3, classes=["blob"], modality="microscopy")
    return build_store([pair, blobs], folder / "store", size=SIZE, progress=False)


def plain(
    store: SliceStore,
    *,
    absent: float = 0.0,
    composite: float = 0.0,
    synthetic: float = 0.0,
    regions: float = 0.0,
    references: tuple[float, ...] = (1.0,),
    instance: float = 0.0,
    window: float = 0.0,
    **options: object,
) -> Sampler:
    mixture = Mixture(absent, 1.0, composite, instance, window, synthetic, regions, references)
    return Sampler(store, seed=0, augmentation=Augmentation.none(), mixture=mixture, **options)  # type: ignore[arg-type]


def cases(images: torch.Tensor) -> list[int]:
    """The case number, which `dataset_files.coloured` writes into the red channel."""
    return [round(float(red) * 25.5) for red in images[..., 0, 0, 0].flatten()]


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_shapes_and_values(store: SliceStore) -> None:
    batch = Sampler(store, seed=0, mixture=Mixture(references=(0.0, 1.0))).batch(5, step=0, size=32)
    assert batch.images.shape == (5, 3, 32, 32)
    assert batch.masks.shape == batch.objects.shape == (5, 1, 32, 32)
    assert batch.references.shape == (5, 2) and batch.references.dtype == torch.int64
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    assert set(batch.masks.unique().tolist()) | set(batch.objects.unique().tolist()) <= {0.0, 1.0}
    assert batch.class_index.dtype == torch.int64 and len(batch.dataset) == 5


def test_a_batch_depends_on_seed_and_step_alone(store: SliceStore) -> None:
    sampler = Sampler(store, seed=3)
    expected = [sampler.batch(3, step=step, size=32) for step in range(5)]
    again = Sampler(store, seed=3)
    with Prefetcher(lambda step: again.batch(3, step=step, size=32), stop=5, depth=2) as batches:
        for one, other in zip(expected, batches, strict=True):
            assert same(one, other)
    assert not same(expected[0], expected[1])
    assert not same(expected[0], Sampler(store, seed=4).batch(3, step=0, size=32))


def test_masks_are_the_class_that_the_index_names(store: SliceStore) -> None:
    registry = ClassRegistry(["other", "Second", "blob", "first"])
    batch = plain(store, registry=registry).batch(40, step=0, size=SIZE)
    expected = {"first": A == 1, "second": B == 2, "blob": BLOBS == 1}
    for index, mask in zip(batch.class_index.tolist(), batch.masks, strict=True):
        np.testing.assert_array_equal(mask[0].numpy() > 0, expected[registry.names[index].casefold()])
    assert set(batch.class_index.tolist()) == {1, 2, 3}


def test_data_sets_then_classes_have_equal_shares(store: SliceStore) -> None:
    drawn = Counter(plain(store).batch(800, step=0, size=32).class_index.tolist())
    assert drawn[2] == pytest.approx(400, abs=100)  # five standard deviations of 400 pairs
    assert drawn[0] == pytest.approx(200, abs=88) and drawn[1] == pytest.approx(200, abs=88)
    weighted = plain(store, dataset_weights={"blobs": 0.0}).batch(50, step=0, size=32)
    assert set(weighted.dataset) == {"pair"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_references_show_the_structure_in_other_patients(store: SliceStore, count: int) -> None:
    patients = "ppqrst"
    chances = tuple(float(number == count) for number in (1, 2, 3))
    batch = plain(store, absent=0.3, references=chances, dataset_weights={"blobs": 0.0}).batch(60, step=0, size=SIZE)
    shown = [patients[case] for case in cases(batch.images)]
    asked = [row for row in range(60) if batch.references[row, 0] >= 0]
    assert len(asked) > 30
    for row in asked:
        assert len(batch.references[row]) == count
        for other in batch.references[row].tolist():
            assert shown[other] != shown[row] and batch.masks[other].any()
            assert batch.class_index[other] == batch.class_index[row]
    for row in set(range(60)) - set(asked):
        assert (batch.references[row] == -1).all()


def test_enough_cases_give_different_references(store: SliceStore) -> None:
    batch = plain(store, references=(0.0, 1.0), dataset_weights={"pair": 0.0}).batch(21, step=0, size=32)
    for row, references in enumerate(batch.references):
        assert sorted(cases(batch.images[[row, *references.tolist()]])) == [0, 1, 2]


def test_absent_images_come_from_the_same_data_set_if_it_can_give_them(store: SliceStore) -> None:
    batch = plain(store, absent=1.0).batch(60, step=0, size=32)
    assert not batch.masks.any() and not batch.objects.any() and (batch.references == -1).all()
    without = {0: {2, 3, 4}, 1: {1, 4}}
    for index, name, case in zip(batch.class_index.tolist(), batch.dataset, cases(batch.images), strict=True):
        assert name == "pair"  # all blob images hold a blob: another modality stands in
        assert case in without.get(index, range(6))
    assert set(batch.class_index.tolist()) == {0, 1, 2}


def test_a_stand_in_for_an_absent_class_has_another_modality(tmp_path: Path) -> None:
    modalities = {"blobs": "MRI", "sibling": "MRI", "stranger": "CT"}
    folders = [
        write_dataset(tmp_path / name, [A, A], classes=[f"of {name}"], modality=modality)
        for name, modality in modalities.items()
    ]
    store = build_store(folders, tmp_path / "store", size=SIZE, progress=False)
    batch = plain(store, absent=1.0).batch(60, step=0, size=32)
    for index, name in zip(batch.class_index.tolist(), batch.dataset, strict=True):
        asked = list(modalities)[index]
        assert modalities[name] != modalities[asked]
    own = Sampler(store, seed=0, mixture=Mixture(absent=1.0, elsewhere=0.0, synthetic=0.0, regions=0.0)).batch(
        60, step=0, size=32
    )
    for index, name in zip(own.class_index.tolist(), own.dataset, strict=True):
        assert list(modalities)[index] == name
    assert own.masks.flatten(1).any(dim=1).all()


def test_images_are_asked_for_what_they_lack(store: SliceStore) -> None:
    """A class of their own data set, if one is absent, and one that only another modality holds."""
    batch = plain(store).batch(60, step=0, size=32)
    own_absent = {0: set(), 1: {1}, 2: {0}, 3: {0}, 4: {0, 1}, 5: set()}
    blob = 2
    for absent_classes, name, case in zip(
        batch.absent_classes.tolist(), batch.dataset, cases(batch.images), strict=True
    ):
        if name == "blobs":
            assert set(absent_classes) <= {0, 1}
        elif own_absent[case]:
            assert absent_classes[0] in own_absent[case] and absent_classes[1] == blob
        else:
            assert absent_classes == [blob, blob]


def test_images_of_other_data_sets_may_hold_a_structure_unlabelled(store: SliceStore) -> None:
    mixture = Mixture(elsewhere=0.0, synthetic=0.5, regions=0.0)
    sampler = Sampler(store, seed=0, augmentation=Augmentation.none(), mixture=mixture)
    batch = sampler.batch(60, step=0, size=32)
    for absent_classes, name in zip(batch.absent_classes.tolist(), batch.dataset, strict=True):
        assert set(absent_classes) <= ({NO_CLASS, 0, 1} if name == "pair" else {NO_CLASS})


def test_components_are_measured_in_the_images_own_pixels(tmp_path: Path) -> None:
    small = rectangle((32, 32), slice(2, 12), slice(2, 12)) + rectangle((32, 32), slice(20, 24), slice(20, 24))
    store = build_store([write_dataset(tmp_path / "set", [small])], tmp_path / "store", size=128, progress=False)
    batch = plain(store, composite=1.0).batch(30, step=0, size=128)
    assert batch.masks[:, :, 64:, 64:].flatten(1).any(dim=1).all()
    assert not batch.objects[:, :, 64:, 64:].any()  # 4 x 4 pixels are 256 in the store, and still a speck


def test_objects_to_click_on_are_classes_unions_or_components(store: SliceStore) -> None:
    seen = Counter[str]()
    batch = plain(store, composite=0.5).batch(120, step=0, size=SIZE)
    assert batch.objects.flatten(1).any(dim=1).all()
    for name, mask, clicked in zip(batch.dataset, batch.masks[:, 0], batch.objects[:, 0].numpy() > 0, strict=True):
        if np.array_equal(clicked, mask.numpy() > 0):
            seen["class"] += 1
        elif name == "pair":
            np.testing.assert_array_equal(clicked, (A + B) > 0)
            seen["union"] += 1
        else:
            assert ndimage.label(clicked)[1] == 1 and clicked.sum() in (400, 100)  # never the speck of 16 pixels
            seen["component"] += 1
    assert seen["class"] > 50 and seen["union"] > 3 and seen["component"] > 10
    whole = plain(store).batch(30, step=0, size=32)
    assert torch.equal(whole.objects, whole.masks)


def test_synthetic_groups_are_no_class_and_refer_to_each_other(store: SliceStore) -> None:
    batch = plain(store, synthetic=1.0).batch(8, step=0, size=32)
    assert set(batch.dataset) == {SYNTHETIC} and (batch.class_index == NO_CLASS).all()
    assert batch.references[:, 0].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_specks_are_not_drawn(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [SPECK, SPECK])
    store = build_store([folder], tmp_path / "store", size=SIZE, progress=False)
    with pytest.raises(ValueError, match=r"no slice in .* shows 20 pixels"):
        Sampler(store, seed=0)


def test_augmentation_never_loses_the_object(tmp_path: Path) -> None:
    corner = rectangle((SIZE, SIZE), slice(0, 6), slice(0, 6))
    folder = write_dataset(tmp_path / "set", [corner, corner])
    store = build_store([folder], tmp_path / "store", size=SIZE, progress=False)
    mixture = Mixture(absent=0.0, synthetic=0.0, regions=0.0)
    sampler = Sampler(store, seed=0, mixture=mixture, augmentation=Augmentation(zoom=4.0))
    batch = sampler.batch(60, step=0, size=SIZE)
    assert batch.masks.flatten(1).any(dim=1).all()


def test_a_single_patient_gives_no_references(tmp_path: Path) -> None:
    one = build_store([write_dataset(tmp_path / "one", [A])], tmp_path / "store", size=SIZE, progress=False)
    batch = plain(one).batch(4, step=0, size=32)
    assert (batch.references == -1).all() and batch.masks.flatten(1).any(dim=1).all()


def test_wrong_requests_are_refused(store: SliceStore) -> None:
    with pytest.raises(ValueError, match="n must be 1 or more"):
        plain(store).batch(0, step=0, size=32)
    with pytest.raises(ValueError, match="dataset_weights must map"):
        plain(store, dataset_weights={"nowhere": 1.0})
    with pytest.raises(ValueError, match="unknown class 'blob'"):
        plain(store, registry=ClassRegistry(["first", "second"]))
    with pytest.raises(ValueError, match=r"Mixture.absent must lie in \[0, 1\], got 2"):
        Mixture(absent=2.0)
    with pytest.raises(ValueError, match="must be chances that sum to 1"):
        Mixture(references=(0.5,))


def test_of_many_instances_one_is_clicked_and_windows_show_it_larger(tmp_path: Path) -> None:
    label = np.zeros((128, 128), dtype=np.uint8)
    for row, column in np.ndindex(4, 4):
        label[32 * row + 8 : 32 * row + 18, 32 * column + 8 : 32 * column + 18] = 1
    dataset = write_dataset(tmp_path / "set", [label] * 2)
    store = build_store([dataset], tmp_path / "store", size=128, progress=False)
    whole, one, close = (
        plain(store, instance=instance, window=window).batch(8, step=0, size=128)
        for instance, window in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    )
    areas = [batch.objects.sum(dim=(1, 2, 3)) for batch in (whole, one, close)]
    assert areas[0].unique().tolist() == [1600] and areas[1].unique().tolist() == [100]
    assert (areas[2] > 250).all()  # at least 1.6 times as long and as wide
    assert ((close.objects <= close.masks).all()) and (close.masks.sum(dim=(1, 2, 3)) > 0).all()


def test_batches_made_on_a_device_are_those_of_the_cpu(store: SliceStore) -> None:
    """The images are kept and gathered there; with the CPU as the device even the noise is the same."""
    for step in range(3):
        one = Sampler(store, seed=5).batch(8, step=step, size=32)
        other = Sampler(store, seed=5, device=torch.device("cpu")).batch(8, step=step, size=32)
        assert same(one, other)


def test_the_store_says_how_often_a_data_set_is_drawn(store: SliceStore) -> None:
    pair, blobs = store.sets
    weighted = replace(store, sets=(replace(pair, weight=0.0), blobs))
    assert set(plain(weighted).batch(20, step=0, size=32).dataset) == {"blobs"}
    overruled = plain(weighted, dataset_weights={"pair": 1.0, "blobs": 0.0})
    assert set(overruled.batch(20, step=0, size=32).dataset) == {"pair"}
