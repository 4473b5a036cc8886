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
    for kind, count in (("benign", 12), ("malignant", 3), ("normal", 2)):
        for number in range(1, count + 1):
            stem = root / kind / f"{kind} ({number}).png"
            picture(stem, colour_noise(number), "RGBA" if number == 2 else None)
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
        assert sheet.width == 1024


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


def test_a_mask_of_another_size_is_faulty(download: Path, tmp_path: Path) -> None:
    picture(download / "benign" / "benign (1)_mask.png", disc((24, 31)) * 255)
    made = prepare("busi_us", download, tmp_path / "out")
    assert made.status == 1
    assert "has (24, 31) rows and columns, but its image (24, 32)" in made.remarks("faulty")[0]


def test_the_published_lists_go_by_picture(download: Path, tmp_path: Path) -> None:
    made = prepare("busi_us", download, tmp_path / "out", "--splits", "published")
    assert (len(made.names("training")), len(made.names("validation")), len(made.names("test"))) == (13, 0, 4)
