# SPDX-License-Identifier: Apache-2.0
"""Region maps of a store: the padding stays out, and what is kept is whole and what would be computed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.data import region_maps as module
from kprism_model.data.building import build_store
from kprism_model.data.region_maps import RegionMaps, RegionSettings, open_region_maps, region_map
from kprism_model.data.slices import SliceSet, SliceStore
from tests.unit.dataset_files import write_dataset

ROOT = Path(__file__).parents[2]
SIZE = 64


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
    return build_store(folders, tmp_path / "store", size=SIZE, progress=False)


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


def kept_files(store: SliceStore, name: str) -> list[Path]:
    return sorted((store.path / name / "regions").glob("*"))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed a map that is kept")


def test_a_map_is_computed_when_it_is_first_asked_for(store: SliceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = open_region_maps(store)["volume"]
    assert len(maps) == 70 and not kept_files(store, "volume")
    computed = {row: maps[row] for row in (5, 60)}
    assert len(kept_files(store, "volume")) == 2 and not kept_files(store, "pictures")
    for row, regions in computed.items():
        np.testing.assert_array_equal(regions, RegionMaps(store.sets[0])[row])
    monkeypatch.setattr(module, "superpixels", refuse)
    for kept in (maps, open_region_maps(store)["volume"]):
        for row, regions in computed.items():
            np.testing.assert_array_equal(kept[row], regions)


def test_maps_of_other_settings_seeds_or_images_are_not_taken(store: SliceStore) -> None:
    pictures = store.sets[1]
    open_region_maps(store)["pictures"][0]
    others = [
        open_region_maps(store, seed=1)["pictures"],
        open_region_maps(store, settings=RegionSettings(scale=(5, 5)))["pictures"],
        # a training that opened the store before the data set was built anew
        RegionMaps(replace(pictures, images=pictures.images[::-1]), folder=store.path / "pictures" / "regions"),
    ]
    for number, maps in enumerate(others):
        maps[0]
        assert len(kept_files(store, "pictures")) == number + 2
    np.testing.assert_array_equal(others[0][0], RegionMaps(pictures, seed=1)[0])


@pytest.mark.parametrize("left", [0, 1, 200])
def test_damaged_files_are_replaced(store: SliceStore, left: int) -> None:
    """As a loss of power may leave them: shorter, or empty."""
    regions = open_region_maps(store)["pictures"][1]
    (file,) = kept_files(store, "pictures")
    whole = file.read_bytes()
    assert len(whole) > 200
    file.write_bytes(whole[:left])
    np.testing.assert_array_equal(open_region_maps(store)["pictures"][1], regions)
    assert kept_files(store, "pictures") == [file] and file.read_bytes() == whole


KILLED = """
import sys
from pathlib import Path
from kill_at_rename import kill_before_rename
from kprism_model.data.region_maps import open_region_maps
from kprism_model.data.slices import SliceStore

maps = open_region_maps(SliceStore.open(Path(sys.argv[1])))["pictures"]
kill_before_rename(1)
print(maps[0].max(), flush=True)
print(maps[1].max(), flush=True)
"""


def python(program: str, *words: Path) -> subprocess.Popen[str]:
    places = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", program, *words], env=places, stdout=subprocess.PIPE, text=True)


def test_a_kill_leaves_no_half_map(store: SliceStore) -> None:
    """Killed with the second map written, and not yet in its place."""
    process = python(KILLED, store.path)
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL and len(printed.split()) == 1
    names = [path.suffix for path in kept_files(store, "pictures")]
    assert sorted(names) == [".part", ".zlib"]
    maps = open_region_maps(store)["pictures"]
    for row in (0, 1):
        np.testing.assert_array_equal(maps[row], RegionMaps(store.sets[1])[row])


SHARING = """
import sys
from pathlib import Path
from kprism_model.data.region_maps import open_region_maps
from kprism_model.data.slices import SliceStore

maps = open_region_maps(SliceStore.open(Path(sys.argv[1])))["volume"]
print(sum(int(maps[row].sum()) for row in range(len(maps))))
"""


def test_processes_share_a_store(store: SliceStore) -> None:
    processes = [python(SHARING, store.path) for _ in range(2)]
    sums = [int(process.communicate()[0]) for process in processes]
    maps = RegionMaps(store.sets[0])
    assert sums == 2 * [sum(int(maps[row].sum()) for row in range(70))]
    assert [path.suffix for path in kept_files(store, "volume")] == [".zlib"] * 70


def test_a_data_set_that_is_built_anew_loses_its_maps(store: SliceStore, tmp_path: Path) -> None:
    for maps in open_region_maps(store).values():
        maps[0]
    (tmp_path / "pictures" / "images" / "case_0.png").touch()
    build_store([tmp_path / name for name in ("volume", "pictures")], store.path, size=SIZE, progress=False)
    assert kept_files(store, "volume") and not kept_files(store, "pictures")


def test_data_sets_in_memory_have_maps_too(store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = store.sets[1]
    held: SliceSet = replace(pictures, images=np.array(pictures.images), labels=np.array(pictures.labels))
    maps = open_region_maps(SliceStore(tmp_path / "a.pack", "training", SIZE, (held,)))["pictures"]
    regions = maps[0]
    assert not (tmp_path / "a.pack").exists()
    np.testing.assert_array_equal(regions, RegionMaps(pictures)[0])
    monkeypatch.setattr(module, "superpixels", refuse)
    np.testing.assert_array_equal(maps[0], regions)


def test_a_store_that_cannot_be_written_to_is_no_obstacle(store: SliceStore) -> None:
    maps = open_region_maps(store)["pictures"]
    expected = RegionMaps(store.sets[1])[0]
    shutil.rmtree(store.path / "pictures")
    np.testing.assert_array_equal(maps[0], expected)
    assert not (store.path / "pictures").exists()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RegionSettings.sigma must be a range of positive numbers, got \(2, 1\)"):
        RegionSettings(sigma=(2, 1))
