# SPDX-License-Identifier: Apache-2.0
"""The slice store: slices as they were, rebuilt when and only when something changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kprism_model.data.building import build_store
from kprism_model.data.slices import SliceStore
from tests.unit.dataset_files import rectangle, write_dataset

TALL = rectangle((64, 40), slice(10, 30), slice(5, 25))
WIDE = rectangle((40, 64), slice(3, 33), slice(20, 50), value=2)


def build(folders: list[Path], out: Path, size: int = 64) -> SliceStore:
    return build_store(folders, out, size=size, progress=False)


def test_pictures_lie_top_left_unchanged_where_they_fit(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [TALL, WIDE], classes=["a", "b"], patients=["p", "q"])
    (part,) = build([folder], tmp_path / "store").sets
    assert part.images.shape == (2, 64, 64, 3) and part.content.tolist() == [[64, 40], [40, 64]]
    np.testing.assert_array_equal(part.labels[0, :, :40], TALL)
    np.testing.assert_array_equal(part.labels[1, :40], WIDE)
    np.testing.assert_array_equal(part.images[1, :40, :, 1], np.where(WIDE > 0, 255, 0))
    assert not part.images[0, :, 40:].any() and not part.labels[1, 40:].any()
    assert part.pixels.tolist() == [[400, 0], [0, 900]]
    assert (part.classes, part.case_names, part.patients) == ({1: "a", 2: "b"}, ("case_0", "case_1"), ("p", "q"))


def test_labels_stay_on_their_image_when_resized(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [rectangle((151, 97), slice(31, 80), slice(17, 66)), TALL])
    (part,) = build([folder], tmp_path / "store").sets
    for image, label in zip(part.images, part.labels, strict=True):
        bright = image[..., 1] > 127
        assert np.mean(bright != (label == 1)) < 0.002


def test_pixels_are_counted_on_the_coarser_grid(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [rectangle((16, 16), slice(4, 8), slice(4, 8))])
    (part,) = build([folder], tmp_path / "store", size=128).sets
    assert 15 <= part.pixels[0, 0] <= 17  # not 16 * 64
    (part,) = build([folder], tmp_path / "coarse", size=32).sets
    assert part.labels.sum() == pytest.approx(64, abs=5)


def test_volumes_give_their_slices_in_order(tmp_path: Path) -> None:
    label = np.zeros((32, 32, 5), np.uint8)
    label[8:24, 8:24, 3] = 1
    folder = write_dataset(
        tmp_path / "set", [label, label], images=[np.arange(label.size, dtype=np.float32).reshape(label.shape)] * 2
    )
    (part,) = build([folder], tmp_path / "store", size=32).sets
    assert part.images.shape == (10, 32, 32, 1)
    assert part.case.tolist() == [0] * 5 + [1] * 5 and part.number.tolist() == [*range(5), *range(5)]
    assert part.pixels[:, 0].tolist() == [0, 0, 0, 256, 0] * 2
    assert part.patient.tolist() == part.case.tolist()


def test_only_what_changed_is_built_again(tmp_path: Path) -> None:
    folders = [write_dataset(tmp_path / name, [TALL], classes=[name]) for name in ("one", "two")]
    build(folders, tmp_path / "store")
    stamps = {name: (tmp_path / "store" / name / "images.npy").stat().st_ino for name in ("one", "two")}
    label = folders[1] / "labels" / "case_0.png"
    os.utime(label, ns=(1, 1))
    store = build(folders, tmp_path / "store")
    assert (tmp_path / "store" / "one" / "images.npy").stat().st_ino == stamps["one"]
    assert (tmp_path / "store" / "two" / "images.npy").stat().st_ino != stamps["two"]
    assert store.class_names == ("one", "two") and len(store) == 2
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["one", "store.json", "two"]


def test_a_failed_build_leaves_the_old_store(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [TALL])
    build([folder], tmp_path / "store")
    (folder / "labels" / "case_0.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"case_0\.png cannot be read"):
        build([folder], tmp_path / "store")
    store = SliceStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.sets[0].labels[0, :, :40], TALL)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["set", "store.json"]


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [TALL])
    with pytest.raises(ValueError, match="multiple of 32, got 100"):
        build([folder], tmp_path / "store", size=100)
    with pytest.raises(ValueError, match="one or more data sets with test cases"):
        build_store([folder], tmp_path / "store", split="test", size=64)
    with pytest.raises(ValueError, match=r"and different names, got \['set', 'set'\]"):
        build([folder, folder], tmp_path / "store")
    with pytest.raises(ValueError, match="not a usable slice store"):
        SliceStore.open(tmp_path / "nothing")


def test_a_cut_file_is_noticed(tmp_path: Path) -> None:
    build([write_dataset(tmp_path / "set", [TALL])], tmp_path / "store")
    file = tmp_path / "store" / "set" / "images.npy"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a usable slice store; build it again"):
        SliceStore.open(tmp_path / "store")
