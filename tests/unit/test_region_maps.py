# SPDX-License-Identifier: Apache-2.0
"""Region maps of a store: the padding stays out, and what is stored is what would be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.data import region_maps as module
from kprism_model.data.region_maps import (
    RegionMaps,
    RegionSettings,
    open_region_maps,
    region_map,
    store_region_maps,
)
from kprism_model.data.slices import SliceSet, SliceStore
from tests.unit.dataset_files import write_dataset

SIZE = 64
FILE = "regions.safetensors"


def blotches(shape: Sequence[int], seed: int = 0) -> NDArray[np.uint8]:
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return ((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> SliceStore:
    """A volume of 70 slices of 64 x 48, and two pictures."""
    volume, pictures = blotches((48, 64, 70)), [np.stack([blotches((64, 64), s)] * 3, 2) for s in (1, 2)]
    label = np.zeros(volume.shape, np.uint8)
    label[8:20, 8:20] = 1
    folders = [
        write_dataset(tmp_path / "volume", [label], images=[volume.astype(np.float32)]),
        write_dataset(tmp_path / "pictures", [np.eye(64, dtype=np.uint8)] * 2, images=pictures),
    ]
    return SliceStore.build(folders, tmp_path / "store", size=SIZE, progress=False)


def test_padding_is_in_no_region(store: SliceStore) -> None:
    maps = open_region_maps(store)["volume"]
    rows, columns = store.sets[0].content[5]
    assert (rows, columns) == (48, 64) or (rows, columns) == (64, 48)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[:rows, :columns] = True
    for row in range(0, len(maps), 10):
        regions = maps[row]
        assert regions.dtype == np.uint16 and regions.shape == (SIZE, SIZE)
        np.testing.assert_array_equal(regions > 0, inside)
        assert set(np.unique(regions[inside])) == set(range(1, regions.max() + 1))


def test_settings_vary_from_slice_to_slice_and_depend_on_the_seed() -> None:
    image = blotches((SIZE, SIZE))[..., None]
    counts = {region_map(image, (SIZE, SIZE), np.random.default_rng(seed)).max() for seed in range(12)}
    assert len(counts) > 4
    one, other = (region_map(image, (SIZE, SIZE), np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_regions_are_as_large_on_a_larger_canvas() -> None:
    """In the share of the image: an image of twice the size is divided alike."""
    small = blotches((128, 128), 4)
    large = ndimage.zoom(small, 2, order=1)
    settings = RegionSettings(minimum_size=(100, 100))
    counts = [region_map(i[..., None], i.shape, np.random.default_rng(0), settings).max() for i in (small, large)]
    assert counts[1] == pytest.approx(counts[0], rel=0.5)


@pytest.mark.parametrize("processes", [1, 2])
def test_stored_maps_are_those_that_would_be_computed(store: SliceStore, processes: int) -> None:
    store_region_maps(store, processes=processes, progress=False)
    for part in store.sets:
        assert (store.path / part.name / FILE).is_file()
        stored, computed = open_region_maps(store)[part.name], RegionMaps(part)
        for row in range(len(part)):
            np.testing.assert_array_equal(stored[row], computed[row])


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed a map that is stored")


def test_only_what_is_missing_or_outdated_is_computed(store: SliceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store_region_maps(store, progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(module, "superpixels", refuse)
        store_region_maps(store, progress=False)
        assert all(maps[0].any() for maps in open_region_maps(store).values())
        with pytest.raises(AssertionError, match="computed a map"):
            _ = open_region_maps(store, seed=1)["volume"][0]
    before = (store.path / "pictures" / FILE).read_bytes()
    store_region_maps(store, settings=RegionSettings(scale=(5, 5)), progress=False)
    assert (store.path / "pictures" / FILE).read_bytes() != before


def test_damaged_files_are_replaced(store: SliceStore) -> None:
    store_region_maps(store, progress=False)
    file = store.path / "pictures" / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    np.testing.assert_array_equal(open_region_maps(store)["pictures"][1], RegionMaps(store.sets[1])[1])
    store_region_maps(store, progress=False)
    assert file.read_bytes() == whole
    assert not list(file.parent.glob(".*"))


def test_a_data_set_that_is_built_anew_loses_its_maps(store: SliceStore, tmp_path: Path) -> None:
    store_region_maps(store, progress=False)
    (tmp_path / "pictures" / "images" / "case_0.png").touch()
    SliceStore.build([tmp_path / name for name in ("volume", "pictures")], store.path, size=SIZE, progress=False)
    assert (store.path / "volume" / FILE).exists() and not (store.path / "pictures" / FILE).exists()


def test_data_sets_in_memory_have_maps_too(store: SliceStore, tmp_path: Path) -> None:
    pictures = store.sets[1]
    held: SliceSet = replace(pictures, images=np.array(pictures.images), labels=np.array(pictures.labels))
    elsewhere = SliceStore(tmp_path / "nowhere", "training", SIZE, (held,))
    store_region_maps(elsewhere, progress=False)
    assert not (tmp_path / "nowhere").exists()
    np.testing.assert_array_equal(open_region_maps(elsewhere)["pictures"][0], RegionMaps(pictures)[0])


def test_wrong_requests_are_refused(store: SliceStore) -> None:
    with pytest.raises(ValueError, match=r"RegionSettings.sigma must be a range of positive numbers, got \(2, 1\)"):
        RegionSettings(sigma=(2, 1))
    with pytest.raises(ValueError, match="processes must be 1 or more, got 0"):
        store_region_maps(store, processes=0)
