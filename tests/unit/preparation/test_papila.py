# SPDX-License-Identifier: Apache-2.0
"""PAPILA: contours of two experts, doubled files, both eyes of a patient, axes that are swapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.preparation.downloads import colour_noise, picture, prepare

SIZE = (60, 90)
EYES = [f"RET{number:03d}{eye}" for number in (2, 4, 5, 9) for eye in ("OD", "OS")]
Box = tuple[int, int, int, int]

DISCS: dict[str, Box] = {"1": (50, 20, 79, 44), "2": (52, 22, 81, 43)}
CUPS: dict[str, Box] = {"1": (60, 28, 70, 38), "2": (58, 30, 69, 39)}
"""left, top, right and bottom of the pixels, all included, by expert"""


def contour(path: Path, box: Box, order: Callable[[float, float], str] = "{} {}".format) -> None:
    """The outline of a box of pixels, in many points."""
    left, top, right, bottom = (value + shift for value, shift in zip(box, (-0.4, -0.4, 0.4, 0.4), strict=True))
    across, down = np.linspace(left, right, 20), np.linspace(top, bottom, 20)
    points = [(x, top) for x in across] + [(right, y) for y in down]
    points += [(x, bottom) for x in across[::-1]] + [(left, y) for y in down[::-1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(order(x, y) for x, y in points))


def filled(box: Box) -> NDArray[np.bool_]:
    left, top, right, bottom = box
    mask = np.zeros(SIZE, bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


def add_eye(root: Path, name: str, seed: int, order: Callable[[float, float], str] = "{} {}".format) -> None:
    pixels = colour_noise(seed, SIZE) // 4
    pixels[filled(DISCS["1"])] += 150
    picture(root / "FundusImages" / f"{name}.jpg", pixels, quality=95)
    contours = root / "ExpertsSegmentations" / "Contours"
    for part, boxes in (("disc", DISCS), ("cup", CUPS)):
        for expert, box in boxes.items():
            contour(contours / f"{name}_{part}_exp{expert}.txt", box, order)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "papila" / "PapilaDB-PAPILA-17f8fa7746adb20275b5b6a0d99dc9dfe3007e9f"
    for seed, name in enumerate(EYES):
        add_eye(root, name, seed)
    contours = root / "ExpertsSegmentations" / "Contours"
    for name in ("RET002OD_cup_exp2", "RET004OS_disc_exp1"):
        (contours / f"{name} 2.txt").write_bytes((contours / f"{name}.txt").read_bytes())
    picture(root / "ExpertsSegmentations" / "ImagesWithContours" / "RET002OD.jpg", colour_noise(99, SIZE))
    (root / "ClinicalData").mkdir()
    (root / "ClinicalData" / "patient_data_od.xlsx").write_bytes(b"PK")
    return root


@pytest.mark.parametrize("expert", [None, "1", "2", "both"])
def test_the_contours_of_an_expert(download: Path, tmp_path: Path, expert: str | None) -> None:
    options = [] if expert is None else ["--expert", expert]
    made = prepare("papila_fundus", download.parent, tmp_path / "out", *options)
    assert made.status == 0
    assert made.dataset.classes == {1: "neuroretinal rim", 2: "optic cup"}
    chosen = ("1", "2") if expert == "both" else (expert or "1",)
    disc = np.logical_and.reduce([filled(DISCS[number]) for number in chosen])
    cup = np.logical_and.reduce([filled(CUPS[number]) for number in chosen])
    for name in EYES:
        label = made.label(name)
        assert ((label > 0) == disc).all()  # rim and cup together are the disc
        assert ((label == 2) == cup).all()
    assert made.content["expert"] == (expert or "1")


def test_doubled_files_and_both_eyes(download: Path, tmp_path: Path) -> None:
    made = prepare("papila_fundus", download, tmp_path / "out")
    assert [Path(sentence.split(",")[0]).name for sentence in made.remarks("doubled")] == [
        "RET002OD_cup_exp2 2.txt",
        "RET004OS_disc_exp1 2.txt",
    ]
    lists = [{case.patient for case in made.dataset.cases(split)} for split in ("training", "validation", "test")]
    assert [len(patients) for patients in lists] == [2, 1, 1]
    assert set.union(*lists) == {"RET002", "RET004", "RET005", "RET009"}
    assert [len(made.names(split)) for split in ("training", "validation", "test")] == [4, 2, 2]
    assert not made.remarks("ignored") and not made.remarks("note")


def test_the_published_lists_part_the_eyes(download: Path, tmp_path: Path) -> None:
    made = prepare("papila_fundus", download, tmp_path / "out", "--splits", "published")
    assert [len(made.names(split)) for split in ("training", "validation", "test")] == [6, 0, 2]


def test_missing_contours_and_faulty_ones_are_named(download: Path, tmp_path: Path) -> None:
    contours = download / "ExpertsSegmentations" / "Contours"
    (contours / "RET002OD_cup_exp1.txt").unlink()
    (download / "FundusImages" / "RET002OS.jpg").rename(download / "FundusImages" / "RET002_OS.jpg")
    (download / "FundusImages" / "RET004OD.jpg").unlink()
    contour(contours / "RET005OD_cup_exp1.txt", (40, 28, 70, 38))  # leaves the disc by ten columns
    contour(contours / "RET005OS_cup_exp1.txt", (5, 5, 9, 9))  # outside the disc
    contour(contours / "RET009OD_disc_exp1.txt", DISCS["1"], lambda x, y: f"{y} {x}")  # leaves the picture
    contour(download / "ExpertsSegmentations" / "old" / "RET009OS_cup_exp1.txt", CUPS["2"])
    made = prepare("papila_fundus", download, tmp_path / "out")
    assert made.status == 1
    missing = made.remarks("missing")
    assert [Path(sentence).name for sentence in missing[:4]] == [
        f"RET004OD_{part}_exp{expert}.txt" for part in ("cup", "disc") for expert in (1, 2)
    ]
    assert missing[4].startswith("RET002OD_cup_exp1.txt of ") and missing[4].endswith("RET002OD.jpg")
    assert made.remarks("note") == ["RET005OD: 110 of 341 pixels of the cup are outside the disc and are left out"]
    assert (made.label("RET005OD") == filled(DISCS["1"]) * 1 + filled((50, 28, 70, 38)) * 1).all()
    differing, outside, leaving = made.remarks("faulty")
    assert "RET009OS_cup_exp1.txt differs from" in differing
    assert "RET005OS_disc_exp1.txt, RET005OS_cup_exp1.txt, the inner contour is wholly outside" in outside
    assert "RET009OD_disc_exp1.txt has x from" in leaving and leaving.endswith("are x and y swapped?")
    names = {case.name for cases in made.dataset.splits.values() for case in cases}
    assert names == {"RET002OS", "RET004OS", "RET005OD"}


def test_swapped_axes_are_noticed_by_the_brightness(download: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(EYES):
        add_eye(download, name, seed, lambda x, y: f"{y} {x - 25}")  # within the picture, but not on the disc
        pixels = colour_noise(seed, SIZE) // 4
        left, top, right, bottom = DISCS["1"]
        pixels[top : bottom + 1, left - 25 : right - 24] += 150
        picture(download / "FundusImages" / f"{name}.jpg", pixels, quality=95)
    with pytest.raises(ValueError, match="lie on bright discs only if x and y are swapped; expected x, the column"):
        prepare("papila_fundus", download, tmp_path / "out")


@pytest.mark.parametrize("expert", ["3", "exp1", ""])
def test_other_experts_are_refused(download: Path, tmp_path: Path, expert: str) -> None:
    with pytest.raises(ValueError, match=f"--expert must be 1, 2 or both .*, got '{expert}'"):
        prepare("papila_fundus", download, tmp_path / "out", "--expert", expert)


@pytest.mark.parametrize("folder", ["FundusImages", "ExpertsSegmentations"])
def test_other_folders_are_refused(download: Path, tmp_path: Path, folder: str) -> None:
    (download / folder).rename(download / "other")
    with pytest.raises(ValueError, match="expected the folders FundusImages and ExpertsSegmentations/Contours"):
        prepare("papila_fundus", download, tmp_path / "out")
