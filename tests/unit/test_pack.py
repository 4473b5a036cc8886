# SPDX-License-Identifier: Apache-2.0
"""The pack: what the store would hold, in one file, or a clear word on why not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kprism_model.cli.main import main
from kprism_model.data.building import build_store
from kprism_model.data.pack import read_pack
from kprism_model.data.slices import SliceSet
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A volume smaller than the canvas, colour pictures larger than it, and flat ones of its size."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    volume = np.zeros((30, 40, 12), np.uint8)
    volume[5:20, 8:30, 3:9] = 1
    smooth = np.add.outer(np.arange(30), 3 * np.arange(40))[..., None] + 20 * volume
    large = [rectangle((150, 97), slice(31, 90), slice(17, 66), value) for value in (1, 2)]
    noise = rng.integers(0, 40, (150, 97, 1)) + np.array([90, 120, 60])
    return [
        write_dataset(folder / "volumes", [volume] * 2, images=[smooth.astype(np.int16)] * 2, modality="MRI"),
        write_dataset(
            folder / "colour",
            large,
            classes=["a", "b"],
            images=[(noise + 60 * (label[..., None] > 0)).astype(np.uint8) for label in large],
            patients=["p", "q"],
        ),
        write_dataset(folder / "flat", [rectangle((SIZE, 40), slice(10, 30), slice(5, 25))] * 3),
    ]


def pack(out: Path, folders: list[Path], *options: object) -> int:
    return main([str(word) for word in ("pack", "--data", *folders, "--out", out, "--size", SIZE, *options)])


def assert_same_but_for_compression(packed: SliceSet, stored: SliceSet, most: float) -> None:
    assert packed.images.shape == stored.images.shape
    np.testing.assert_array_equal(packed.labels, stored.labels)
    for name in ("case", "number", "content", "pixels"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(stored, name))
    for name in ("name", "modality", "anatomy", "classes", "case_names", "patients"):
        assert getattr(packed, name) == getattr(stored, name)
    assert np.abs(packed.images.astype(float) - stored.images).mean() < most


def test_a_pack_holds_what_the_store_holds(folders: list[Path], tmp_path: Path) -> None:
    assert pack(tmp_path / "a.pack", folders, "--weight", "flat=0.5") == 0
    packed = read_pack(tmp_path / "a.pack", progress=False)
    stored = build_store(folders, tmp_path / "store", size=SIZE, progress=False)
    assert (packed.size, packed.split, packed.class_names) == (SIZE, "training", stored.class_names)
    for one, other, most in zip(packed.sets, stored.sets, (2.0, 6.0, 0.01), strict=True):
        assert_same_but_for_compression(one, other, most)
    assert [part.weight for part in packed.sets] == [1.0, 1.0, 0.5]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.pack"]


def test_a_jpeg_is_kept_as_it_is_where_that_is_smaller(tmp_path: Path) -> None:
    label = rectangle((80, 80), slice(10, 40), slice(20, 60))
    folder = write_dataset(tmp_path / "set", [label])
    y, x = np.mgrid[:80, :80]
    picture = (127 + 60 * np.sin(x / 3.0) * np.cos(y / 5.0)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "images" / "case_0.jpg", quality=40)
    description = folder / "dataset.json"
    description.write_text(description.read_text().replace("images/case_0.png", "images/case_0.jpg"))
    assert pack(tmp_path / "a.pack", [folder], "--quality", 100) == 0
    (packed,) = read_pack(tmp_path / "a.pack", progress=False).sets
    (stored,) = build_store([folder], tmp_path / "store", size=SIZE, progress=False).sets
    np.testing.assert_array_equal(packed.images, stored.images)
    np.testing.assert_array_equal(packed.labels, stored.labels)


def test_a_data_set_is_thinned_to_slices_that_show_something_and_some_that_do_not(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(tmp_path / "a.pack", folders[:1], "--most", "volumes=10") == 0
    assert "volumes: 10 slices, 14 left out" in capsys.readouterr().out
    (part,) = read_pack(tmp_path / "a.pack", progress=False).sets
    assert len(part) == 10 and np.count_nonzero(part.pixels[:, 0]) == 8
    assert set(part.case.tolist()) == {0, 1}


def test_a_pack_that_is_too_large_is_not_written(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(tmp_path / "a.pack", folders, "--limit", 1000) == 1
    told = capsys.readouterr().err
    assert "more than the limit of 1,000; largest sets: volumes" in told and "--most NAME=N" in told
    assert not list(tmp_path.iterdir())


def test_tracked_files_and_start_weights_count_once(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["git", "init", "-q", tree], check=True)
    for name, size in (("code", 1000), ("w.safetensors", 500), ("w.json", 50), ("untracked", 7000)):
        (tree / name).write_bytes(bytes(size))
    subprocess.run(["git", "-C", tree, "add", "code", "w.safetensors"], check=True)
    out = tree / "a.pack"
    assert pack(out, folders, "--tree", tree, "--initial", tree / "w") == 0
    total = 1550 + out.stat().st_size
    assert f"initial weights 1,550 bytes, with the pack {total:,} of 62,914,560" in capsys.readouterr().out
    subprocess.run(["git", "-C", tree, "add", "a.pack"], check=True)
    before = out.read_bytes()
    monkeypatch.setattr("kprism_model.data.packing.TREE_LIMIT", total - 10)
    assert pack(out, folders, "--tree", tree, "--initial", tree / "w") == 1
    assert f"with the pack {total:,} of {total - 10:,}: 10 too many" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert pack(out, folders, "--tree", folders[0]) == 2


def test_a_damaged_file_is_refused(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.pack"
    assert pack(path, folders[2:]) == 0
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pack is not a usable pack.*SHA-256"):
        read_pack(path)
    path.write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"a\.pack is not a usable pack"):
        read_pack(path)


def test_what_cannot_be_packed_is_refused(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, told in (
        (("--weight", "other=1"), "--weight names 'other', expected one of colour, flat, volumes"),
        (("--most", "flat=many"), "--most takes NAME=NUMBER, got 'flat=many'"),
        (("--quality", "101"), "--quality must lie in 0..100, got 101"),
    ):
        assert pack(tmp_path / "a.pack", folders, *options) == 2
        assert told in capsys.readouterr().err
