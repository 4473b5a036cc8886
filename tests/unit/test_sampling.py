# SPDX-License-Identifier: Apache-2.0
"""What batches are made of: fair shares, the right references, honest absences, reproducible by seed and step."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from kprism_model.augment import Augmentation
from kprism_model.classes import ClassRegistry
from kprism_model.prefetch import Prefetcher
from kprism_model.sampling import MODES, Batch, Mode, Sampler
from kprism_model.slices import SliceStore
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
    return SliceStore.build([pair, blobs], folder / "store", size=SIZE, progress=False)


def plain(store: SliceStore, **options: object) -> Sampler:
    return Sampler(store, seed=0, augmentation=Augmentation.none(), **options)  # type: ignore[arg-type]


def cases(images: torch.Tensor) -> list[int]:
    """The case number, which `dataset_files.coloured` writes into the red channel."""
    return [round(float(red) * 25.5) for red in images[..., 0, 0, 0].flatten()]


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("mode", MODES)
def test_shapes_and_values(store: SliceStore, mode: Mode) -> None:
    batch = Sampler(store, seed=0).batch(mode, 5, step=0, size=32, references=2)
    assert batch.images.shape == (5, 3, 32, 32) and batch.masks.shape == (5, 1, 32, 32)
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    assert set(batch.masks.unique().tolist()) <= {0.0, 1.0}
    assert batch.present.tolist() == [bool(mask.any()) for mask in batch.masks]
    assert batch.class_index.dtype == torch.int64 and len(batch.dataset) == 5
    if mode == "in_context":
        assert batch.reference_images is not None and batch.reference_images.shape == (5, 2, 3, 32, 32)
        assert batch.reference_masks is not None and batch.reference_masks.shape == (5, 2, 1, 32, 32)
    else:
        assert batch.reference_images is None and batch.reference_masks is None


def test_a_batch_depends_on_seed_and_step_alone(store: SliceStore) -> None:
    sampler = Sampler(store, seed=3)
    expected = [sampler.batch("in_context", 3, step=step, size=32) for step in range(5)]
    again = Sampler(store, seed=3)
    with Prefetcher(lambda step: again.batch("in_context", 3, step=step, size=32), stop=5, depth=2) as batches:
        for one, other in zip(expected, batches, strict=True):
            assert same(one, other)
    assert not same(expected[0], expected[1])
    assert not same(expected[0], Sampler(store, seed=4).batch("in_context", 3, step=0, size=32))


def test_masks_are_the_class_that_the_index_names(store: SliceStore) -> None:
    registry = ClassRegistry(["other", "Second", "blob", "first"])
    batch = plain(store, registry=registry).batch("semantic", 40, step=0, size=SIZE, absent_fraction=0)
    expected = {"first": A == 1, "second": B == 2, "blob": BLOBS == 1}
    for index, mask in zip(batch.class_index.tolist(), batch.masks, strict=True):
        np.testing.assert_array_equal(mask[0].numpy() > 0, expected[registry.names[index].casefold()])
    assert set(batch.class_index.tolist()) == {1, 2, 3}


def test_data_sets_then_classes_have_equal_shares(store: SliceStore) -> None:
    sampler = plain(store)
    drawn = Counter(sampler.batch("semantic", 400, step=0, size=32).class_index.tolist())
    assert drawn[2] == pytest.approx(200, abs=50)  # five standard deviations
    assert drawn[0] == pytest.approx(100, abs=44) and drawn[1] == pytest.approx(100, abs=44)
    weighted = plain(store, dataset_weights={"blobs": 0.0}).batch("semantic", 50, step=0, size=32)
    assert set(weighted.dataset) == {"pair"}


def test_references_show_the_class_and_come_from_other_patients(store: SliceStore) -> None:
    patients = "ppqrst"
    sampler = plain(store, dataset_weights={"blobs": 0.0})
    batch = sampler.batch("in_context", 60, step=0, size=SIZE, references=3, absent_fraction=0.3)
    assert batch.reference_images is not None and batch.reference_masks is not None
    for row in range(60):
        queried = patients[cases(batch.images[row : row + 1])[0]]
        references = cases(batch.reference_images[row])
        assert queried not in {patients[case] for case in references}
        expected = torch.from_numpy((A == 1) if batch.class_index[row] == 0 else (B == 2))
        for mask in batch.reference_masks[row]:
            assert torch.equal(mask[0] > 0, expected)
    assert 0.1 < 1 - batch.present.float().mean() < 0.5


def test_enough_cases_give_different_references(store: SliceStore) -> None:
    sampler = plain(store, dataset_weights={"pair": 0.0})
    batch = sampler.batch("in_context", 20, step=0, size=32, references=2, absent_fraction=0)
    assert batch.reference_images is not None
    for query, references in zip(batch.images, batch.reference_images, strict=True):
        assert sorted([*cases(query[None]), *cases(references)]) == [0, 1, 2]


def test_absent_rows_come_from_the_same_data_set_if_it_can_give_them(store: SliceStore) -> None:
    batch = plain(store).batch("semantic", 60, step=0, size=32, absent_fraction=1.0)
    assert not batch.present.any() and not batch.masks.any()
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
    store = SliceStore.build(folders, tmp_path / "store", size=SIZE, progress=False)
    batch = plain(store).batch("semantic", 60, step=0, size=32, absent_fraction=1.0)
    for index, name in zip(batch.class_index.tolist(), batch.dataset, strict=True):
        asked = list(modalities)[index]
        assert modalities[name] != modalities[asked]


def test_components_are_measured_in_the_images_own_pixels(tmp_path: Path) -> None:
    small = rectangle((32, 32), slice(2, 12), slice(2, 12)) + rectangle((32, 32), slice(20, 24), slice(20, 24))
    store = SliceStore.build([write_dataset(tmp_path / "set", [small])], tmp_path / "store", size=128, progress=False)
    batch = plain(store).batch("interactive", 30, step=0, size=128, composite_fraction=1.0)
    assert (batch.class_index == -1).all()
    assert not batch.masks[:, :, 64:, 64:].any()  # 4 x 4 pixels are 256 in the store, and still a speck


def test_objects_to_click_on_are_classes_unions_or_components(store: SliceStore) -> None:
    seen = Counter[str]()
    batch = plain(store).batch("interactive", 120, step=0, size=SIZE, composite_fraction=0.5)
    assert batch.present.all()
    for index, name, mask in zip(batch.class_index.tolist(), batch.dataset, batch.masks[:, 0].numpy() > 0, strict=True):
        count = ndimage.label(mask)[1]
        if index >= 0:
            seen["class"] += 1
        elif name == "pair":
            np.testing.assert_array_equal(mask, (A + B) > 0)
            seen["union"] += 1
        else:
            assert count == 1 and mask.sum() in (400, 100)  # never the speck of 16 pixels
            seen["component"] += 1
    assert seen["class"] > 50 and seen["union"] > 3 and seen["component"] > 10
    whole = plain(store).batch("interactive", 30, step=0, size=32, composite_fraction=0.0)
    assert (whole.class_index >= 0).all()


def test_specks_are_not_drawn(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [SPECK, SPECK])
    store = SliceStore.build([folder], tmp_path / "store", size=SIZE, progress=False)
    with pytest.raises(ValueError, match=r"no slice in .* shows 20 pixels"):
        Sampler(store, seed=0)


def test_augmentation_never_loses_the_object(tmp_path: Path) -> None:
    corner = rectangle((SIZE, SIZE), slice(0, 6), slice(0, 6))
    folder = write_dataset(tmp_path / "set", [corner, corner])
    store = SliceStore.build([folder], tmp_path / "store", size=SIZE, progress=False)
    sampler = Sampler(store, seed=0, augmentation=Augmentation(zoom=4.0))
    batch = sampler.batch("in_context", 60, step=0, size=SIZE, absent_fraction=0)
    assert batch.present.all()
    assert batch.reference_masks is not None and batch.reference_masks.flatten(2).any(dim=2).all()


def test_wrong_requests_are_refused(store: SliceStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot draw 'both'"):
        plain(store).batch("both", 2, step=0, size=32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n and references must be 1 or more"):
        plain(store).batch("semantic", 0, step=0, size=32)
    with pytest.raises(ValueError, match="dataset_weights must give"):
        plain(store, dataset_weights={"nowhere": 1.0})
    with pytest.raises(ValueError, match="unknown class 'blob'"):
        plain(store, registry=ClassRegistry(["first", "second"]))
    one = SliceStore.build([write_dataset(tmp_path / "one", [A])], tmp_path / "store", size=SIZE, progress=False)
    with pytest.raises(ValueError, match="in_context needs two patients"):
        plain(one).batch("in_context", 2, step=0, size=32)
