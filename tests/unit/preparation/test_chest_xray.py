# SPDX-License-Identifier: Apache-2.0
"""Chest X-rays: three downloads, masks with and without a suffix, halves, palettes, pictures without a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.unit.preparation.downloads import Prepared, disc, picture, prepare

LEFT, RIGHT = disc(centre=(12, 8)), disc(centre=(12, 24))


def grey_noise(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (24, 32)).astype(np.uint8)


def with_palette(path: Path, grey: NDArray[np.uint8]) -> None:
    """Write a picture whose numbers are not its brightness: number n is as bright as 255 - n."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(255 - grey).convert("P")
    made.putpalette([255 - number for number in range(256) for _ in range(3)])
    made.save(path)


def add_kaggle(root: Path) -> None:
    for number in range(1, 9):
        picture(root / "CXR_png" / f"MCUCXR_{number:04d}_0.png", grey_noise(number))
        picture(root / "masks" / f"MCUCXR_{number:04d}_0.png", 255 * (LEFT | RIGHT))
        with_palette(root / "CXR_png" / f"CHNCXR_{number:04d}_1.png", grey_noise(20 + number))
        if number > 2:
            picture(
                root / "masks" / f"CHNCXR_{number:04d}_1_mask.png",
                255 * LEFT if number == 4 else LEFT,
                "1" if number == 4 else None,
            )
        else:
            picture(root / "test" / f"CHNCXR_{number:04d}_1.png", grey_noise(20 + number))
    picture(root / "CXR_png" / "CHNCXR_0009_0.png", grey_noise(50), "RGB")
    picture(root / "masks" / "CHNCXR_0009_0_mask.png", 255 * RIGHT, "RGB")
    (root / "ClinicalReadings").mkdir()
    (root / "ClinicalReadings" / "MCUCXR_0001_0.txt").write_text("Patient's Sex: F")
    (root / "NLM-MontgomeryCXRSet-ReadMe.pdf").write_bytes(b"")
    picture(root / ".ipynb_checkpoints" / "MCUCXR_0001_0.png", grey_noise(0))


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    add_kaggle(tmp_path / "download" / "data" / "Lung Segmentation")
    return tmp_path / "download"


def count(made: Prepared) -> int:
    return sum(len(made.names(split)) for split in ("training", "validation", "test"))


def test_masks_with_and_without_a_suffix(kaggle: Path, tmp_path: Path) -> None:
    made = prepare("chest_xray", kaggle, tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "lungs"}
    assert count(made) == 8 + 6 + 1
    assert (made.label("MCUCXR_0003_0") == (LEFT | RIGHT)).all()
    assert (made.label("CHNCXR_0003_1") == LEFT).all()  # values 0 and 1
    assert (made.label("CHNCXR_0004_1") == LEFT).all()  # one bit a pixel
    assert (made.label("CHNCXR_0009_0") == RIGHT).all()
    assert [Path(path).name for path in made.remarks("unlabelled")] == ["CHNCXR_0001_1.png", "CHNCXR_0002_1.png"]
    assert "2 pictures of the folder test are not read: CXR_png has them too" in made.remarks("note")
    assert "the published code reads 7 of these, whose masks' names end in _mask" in made.remarks("note")
    assert not made.remarks("ignored") and not made.remarks("doubled") and not made.remarks("missing")


def test_pictures_become_grey_by_their_palette(kaggle: Path, tmp_path: Path) -> None:
    made = prepare("chest_xray", kaggle, tmp_path / "out")
    for name, seed in (("MCUCXR_0003_0", 3), ("CHNCXR_0005_1", 25), ("CHNCXR_0009_0", 50)):
        image = made.image(name)
        assert image.shape == (24, 32), name
        assert (image == grey_noise(seed)).all(), name


def test_the_halves_of_montgomery_and_lesions_of_shenzhen(tmp_path: Path) -> None:
    montgomery, shenzhen = tmp_path / "d" / "MontgomerySet", tmp_path / "d" / "ChinaSet_AllFiles" / "ChinaSet_AllFiles"
    for number in (1, 2, 113, 117, 162, 166, 170):
        name = f"MCUCXR_{number:04d}_0.png"
        picture(montgomery / "CXR_png" / name, grey_noise(number))
        picture(montgomery / "ManualMask" / "leftMask" / name, 255 * LEFT, "1")
        picture(montgomery / "ManualMask" / "rightMask" / name, 255 * RIGHT, "1")
    (montgomery / "ManualMask" / "rightMask" / "MCUCXR_0002_0.png").unlink()
    for number in (5, 6):
        with_palette(shenzhen / "CXR_png" / f"CHNCXR_{number:04d}_1.png", grey_noise(300 + number))
        picture(shenzhen / "Annotations" / f"CHNCXR_{number:04d}_1.png", 255 * disc(radius=2))
    picture(tmp_path / "d" / "mask" / "mask" / "CHNCXR_0005_1_mask.png", 255 * (LEFT | RIGHT))
    made = prepare("chest_xray", tmp_path / "d", tmp_path / "out")
    assert count(made) == 7
    assert (made.label("MCUCXR_0001_0") == (LEFT | RIGHT)).all()
    assert (made.label("CHNCXR_0005_1") == (LEFT | RIGHT)).all()
    assert [Path(path).name for path in made.remarks("unlabelled")] == ["CHNCXR_0006_1.png"]
    assert [Path(path).name for path in made.remarks("ignored")] == ["CHNCXR_0005_1.png", "CHNCXR_0006_1.png"]
    missing = made.remarks("missing")
    assert missing[0].startswith("the mask of the other lung of") and missing[0].endswith("leftMask/MCUCXR_0002_0.png")
    assert missing[1].startswith("the mask of") and missing[1].endswith("CXR_png/MCUCXR_0002_0.png")
    patients = {case.name: case.patient for cases in made.dataset.splits.values() for case in cases}
    assert patients["MCUCXR_0113_0"] == patients["MCUCXR_0117_0"] == "MCUCXR_0113"
    assert {patients[f"MCUCXR_0{number}_0"] for number in (162, 166, 170)} == {"MCUCXR_0162"}
    assert len(set(patients.values())) == 4


def test_two_downloads_in_one_folder_are_joined(kaggle: Path, tmp_path: Path) -> None:
    montgomery = kaggle / "MontgomerySet"
    picture(montgomery / "CXR_png" / "MCUCXR_0001_0.png", grey_noise(1))
    for side, mask in (("leftMask", LEFT), ("rightMask", RIGHT)):
        picture(montgomery / "ManualMask" / side / "MCUCXR_0001_0.png", 255 * mask, "1")
    made = prepare("chest_xray", kaggle, tmp_path / "out")
    assert count(made) == 15
    assert (made.label("MCUCXR_0001_0") == (LEFT | RIGHT)).all()
    (doubled,) = made.remarks("doubled")
    assert "is a copy of" in doubled and doubled.endswith("CXR_png/MCUCXR_0001_0.png, which is used")


@pytest.mark.parametrize("present", ["nothing", "pictures", "lesions"])
def test_downloads_without_lungs_are_refused(tmp_path: Path, present: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    if present != "nothing":
        with_palette(folder / "ChinaSet_AllFiles" / "CXR_png" / "CHNCXR_0001_1.png", grey_noise(1))
    if present == "lesions":
        picture(folder / "ChinaSet_AllFiles" / "Annotations" / "CHNCXR_0001_1.png", 255 * LEFT)
    what = "holds no chest X-rays" if present == "nothing" else "holds 1 chest X-rays but no lung masks"
    with pytest.raises(ValueError, match=f"{what}: expected folders CXR_png and masks.*shcxr-lung-mask"):
        prepare("chest_xray", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
