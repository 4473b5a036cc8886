# SPDX-License-Identifier: Apache-2.0
"""BUSI: several masks a picture, normal pictures without a lesion, masks without a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.preparation.downloads import colour_noise, disc, picture, prepare


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "Dataset_BUSI_with_GT"
    for kind, count, seed in (("benign", 12, 0), ("malignant", 3, 20), ("normal", 2, 30)):
        for number in range(1, count + 1):
            stem = root / kind / f"{kind} ({number}).png"
            picture(stem, colour_noise(seed + number), "RGBA" if number == 2 else None)
            mask = disc() * 255 if kind != "normal" else np.zeros((24, 32), np.uint8)
            picture(stem.with_name(f"{kind} ({number})_mask.png"), mask, "1" if number == 3 else "RGB")
    picture(root / "benign" / "benign (4)_mask_1.png", disc(centre=(3, 3), radius=2) * 255)
    picture(root / "benign" / "benign (11)_mask_1.png", disc(centre=(20, 28), radius=3))  # values 0 and 1
    (root / "Thumbs.db").write_bytes(b"")
    return root


def test_masks_are_joined_and_normal_pictures_are_empty(download: Path, tmp_path: Path) -> None:
    made = prepare("busi_us", download.parent, tmp_path.parent / f"{tmp_path.name}_out")
    assert made.status == 0
    assert made.dataset.classes == {1: "benign lesion", 2: "malignant lesion"}
    assert (made.label("benign_001") == disc()).all()
    assert (made.label("benign_004") == disc() | disc(centre=(3, 3), radius=2)).all()
    assert (made.label("benign_011") == disc() | disc(centre=(20, 28), radius=3)).all()
    assert (made.label("malignant_003") == 2 * disc()).all()
    assert not made.label("normal_001").any()
    assert (made.image("benign_001") == colour_noise(1)).all()
    assert sum(len(made.names(split)) for split in ("training", "validation", "test")) == 17
    with Image.open(tmp_path.parent / f"{tmp_path.name}_out" / "overview.png") as sheet:
        assert sheet.size == (1056, 3 * 282 + 20)  # twelve tiles and a legend


def test_pictures_and_masks_without_each_other_are_named(download: Path, tmp_path: Path) -> None:
    (download / "benign" / "benign (5).png").unlink()
    (download / "malignant" / "malignant (1)_mask.png").unlink()
    (download / "malignant" / "notes.txt").write_text("x")
    made = prepare("busi_us", download, tmp_path / "out")
    missing = made.remarks("missing")
    assert len(missing) == 2
    assert missing[0].endswith("benign (5)_mask.png") and missing[0].startswith("the picture of")
    assert missing[1].endswith("malignant (1).png") and missing[1].startswith("the mask of")
    assert [Path(path).name for path in made.remarks("ignored")] == ["notes.txt"]


@pytest.mark.parametrize("other", ["MALIGNANT(1).png", "Malignant (1).PNG", "malignant (01).png"])
@pytest.mark.parametrize("mask", [False, True])
def test_two_files_of_one_name_are_told_apart(download: Path, tmp_path: Path, other: str, mask: bool) -> None:
    """A copy is left alone; of different files none is taken, the wrong one would be paired with the other's mask."""
    folder = download / "malignant"
    end = "_mask." if mask else "."
    path, second = folder / f"malignant (1){end}png", folder / other.replace(".", end)
    second.write_bytes(path.read_bytes())
    first = prepare("busi_us", download, tmp_path / "copy")
    assert first.status == 0 and [sentence for sentence in first.remarks("doubled") if "is a copy of" in sentence]
    assert (first.label("malignant_001") == 2 * disc()).all()
    picture(second, disc(radius=3) * 255 if mask else colour_noise(99))
    made = prepare("busi_us", download, tmp_path / "out")
    assert made.status == 1 and str(second) in made.remarks("faulty")[0]
    assert sum(len(made.names(split)) for split in ("training", "validation", "test")) == 16
    assert not [name for split in ("training", "validation", "test") for name in made.names(split) if "t_001" in name]


def test_a_mask_of_another_size_is_faulty(download: Path, tmp_path: Path) -> None:
    picture(download / "benign" / "benign (1)_mask.png", disc((24, 31)) * 255)
    made = prepare("busi_us", download, tmp_path / "out")
    assert made.status == 1
    assert "has (24, 31) rows and columns, but its image (24, 32)" in made.remarks("faulty")[0]


def test_the_published_lists_go_by_picture(download: Path, tmp_path: Path) -> None:
    made = prepare("busi_us", download, tmp_path / "out", "--splits", "published")
    assert (len(made.names("training")), len(made.names("validation")), len(made.names("test"))) == (13, 0, 4)


@pytest.mark.parametrize(
    ("first", "second", "mode", "with_labels"),
    [
        ("benign (1)", "benign (7)", None, ""),
        ("benign (5)", "malignant (1)", "RGBA", " with different labels"),
        ("malignant (2)", "normal (1)", None, " with different labels"),
    ],
)
def test_equal_pictures_are_one_patient(
    download: Path, tmp_path: Path, first: str, second: str, mode: str | None, with_labels: str
) -> None:
    def path_of(name: str) -> Path:
        return download / name.split()[0] / f"{name}.png"

    with Image.open(path_of(first)) as original:
        picture(path_of(second), np.asarray(original.convert("RGB")), mode, compress_level=1)  # other bytes
    made = prepare("busi_us", download, tmp_path / "out")
    one, other = (f"{name.split()[0]}_{int(name.split()[1].strip('()')):03d}" for name in (first, second))
    assert made.remarks("doubled") == [
        f"{one} and {other} are the same picture{with_labels}; they count as one patient"
    ]
    assert made.case(one).patient == made.case(other).patient == one
    assert len({case.patient for cases in made.dataset.splits.values() for case in cases}) == 16
    lists = [{one, other} & made.names(split) for split in ("training", "validation", "test")]
    assert sorted(map(len, lists)) == [0, 0, 2]
