# SPDX-License-Identifier: Apache-2.0
"""KPI 2024: groups and animals in folders, hyphens, sections of one animal, JPEG masks, whole slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.preparation.downloads import colour_noise, picture, prepare

MASK = np.zeros((32, 48), np.uint8)
MASK[8:24, 16:40] = 1

CASES = [
    ("train", "56Nx", "12_116", "56Nx_12_116_4_4096_0"),
    ("train", "DN", "11_356", "11_356_7_0_1024"),
    ("train", "NEP25", "08_368_01", "08_368_01_3_0_0"),
    ("train", "NEP25", "08_368_02", "08_368_02_3_0_0"),
    ("train", "normal", "normal_F1", "normal_F1_5_5120_0"),
    ("validation", "56Nx", "12-173", "12-173_37_11264_1024"),
    ("test", "NEP25", "18-578", "18-578_1_0_0"),
    ("test", "normal", "normal_M1574", "normal_M1574_1_0_0"),
]


def add(folder: Path, group: str, case: str, stem: str, seed: int, mask: NDArray[np.uint8] = 255 * MASK) -> None:
    picture(folder / group / case / "img" / f"{stem}_img.jpg", colour_noise(seed, (32, 48)), quality=90)
    picture(folder / group / case / "mask" / f"{stem}_mask.jpg", mask, "RGB" if seed % 2 else None, quality=70)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    for seed, (part, group, case, stem) in enumerate(CASES):
        add(tmp_path / "kpi" / f"KPIs24 {part} Data" / "Task1_patch_level" / part, group, case, stem, seed)
    add(
        tmp_path / "kpi" / "KPIs24 train Data" / "Task1_patch_level" / "train",
        "DN",
        "11_356",
        "11_356_8_0_0",
        50,
        0 * MASK,
    )
    return tmp_path / "kpi"


def test_lists_animals_and_masks(download: Path, tmp_path: Path) -> None:
    made = prepare("kpi2024_histopathology", download, tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "glomerulus"}
    assert made.names("training") == {
        "56Nx_12_116_4_4096_0",
        "DN_11_356_7_0_1024",
        "DN_11_356_8_0_0",
        "NEP25_08_368_01_3_0_0",
        "NEP25_08_368_02_3_0_0",
        "normal_F1_5_5120_0",
    }
    assert made.names("validation") == {"56Nx_12-173_37_11264_1024"}
    assert made.names("test") == {"NEP25_18-578_1_0_0", "normal_M1574_1_0_0"}
    for name in made.names("training") - {"DN_11_356_8_0_0"}:
        assert (made.label(name) == MASK).all(), name
    assert not made.label("DN_11_356_8_0_0").any()
    patients = {case.name: case.patient for cases in made.dataset.splits.values() for case in cases}
    assert patients["NEP25_08_368_01_3_0_0"] == patients["NEP25_08_368_02_3_0_0"] == "nep25_08_368"
    assert patients["56Nx_12_116_4_4096_0"] == "56nx_12_116"
    assert patients["56Nx_12-173_37_11264_1024"] == "56nx_12_173"
    assert not made.remarks("ignored")


def test_an_animal_on_two_lists_stays_on_the_held_out_one(download: Path, tmp_path: Path) -> None:
    add(download / "Task1_patch_level" / "test", "NEP25", "08-368-03", "08-368-03_1_0_0", 60)
    made = prepare("kpi2024_histopathology", download, tmp_path / "out")
    assert "NEP25_08-368-03_1_0_0" in made.names("test")
    assert not {name for name in made.names("training") if "08_368" in name}
    assert "more held-out official list: NEP25_08_368_01_3_0_0, NEP25_08_368_02_3_0_0" in made.printed


@pytest.mark.parametrize("part", ["data", "train", ""])
def test_patches_whose_names_do_not_tell_the_animal(tmp_path: Path, part: str) -> None:
    root = tmp_path / "kpi" / "Task1_patch_level" / part
    for seed, (group, case) in enumerate((("56NX", "case1"), ("56NX", "case2"), ("DN", "case1"), ("normal", "case 1"))):
        add(root, group, case, "patch1", seed)
        other = root / group / case
        picture(other / "img" / "patch2_img.jpg", colour_noise(20 + seed, (32, 48)))
        picture(other / "mask" / "patch2_img.jpg", 255 * MASK)  # a mask that is called as its picture
    made = prepare("kpi2024_histopathology", tmp_path / "kpi", tmp_path / "out")
    names = made.names("training") | made.names("validation") | made.names("test")
    assert names == {
        f"{case}_patch{n}" for case in ("56NX_case1", "56NX_case2", "DN_case1", "normal_case 1") for n in (1, 2)
    }
    assert all((made.label(name) == MASK).all() for name in names)


def test_missing_and_other_files_are_named(download: Path, tmp_path: Path) -> None:
    next(download.rglob("normal_F1_5_5120_0_mask.jpg")).unlink()
    next(download.rglob("11_356_7_0_1024_img.jpg")).unlink()
    (download / "Task2_WSI_level").mkdir()
    (download / "Task2_WSI_level" / "12-116_wsi.tiff").write_bytes(b"")
    (download / "readme.txt").write_text("x")
    made = prepare("kpi2024_histopathology", download, tmp_path / "out")
    missing = made.remarks("missing")
    assert missing[0].startswith("the picture of") and missing[0].endswith("mask/11_356_7_0_1024_mask.jpg")
    assert missing[1].startswith("the mask of") and missing[1].endswith("img/normal_F1_5_5120_0_img.jpg")
    assert made.remarks("note") == ["1 whole slides (task 2) are not read"]
    assert [Path(path).name for path in made.remarks("ignored")] == ["readme.txt"]


@pytest.mark.parametrize("present", ["slides", "pictures", "nothing"])
def test_other_downloads_are_refused(tmp_path: Path, present: str) -> None:
    folder = tmp_path / "kpi"
    folder.mkdir()
    if present == "slides":
        for name in ("12-116_wsi.tiff", "12-116_mask.tiff"):
            path = folder / "Task2_WSI_level" / "56Nx" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"II")
    elif present == "pictures":
        picture(folder / "train" / "DN" / "11_356" / "img" / "11_356_1_0_0_img.jpg", colour_noise(1))
    what = "holds 2 whole slides" if present == "slides" else "holds no patches with masks"
    with pytest.raises(ValueError, match=f"{what}.*Task1_patch_level/train/56Nx/12_116/img and mask"):
        prepare("kpi2024_histopathology", folder, tmp_path / "out")
