# SPDX-License-Identifier: Apache-2.0
"""ISIC 2018: official lists, ground truth that copies lack, attributes. UWaterloo: one stem in several folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.preparation.downloads import colour_noise, disc, picture, prepare

SIZES = {"Training": 6, "Validation": 2, "Test": 3}


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    number = 0
    for name, size in SIZES.items():
        images = tmp_path / "isic" / f"ISIC2018_Task1-2_{name}_Input"
        masks = tmp_path / "isic" / f"ISIC2018_Task1_{name}_GroundTruth"
        for _ in range(size):
            number += 1
            picture(images / f"ISIC_{number:07d}.jpg", colour_noise(number), quality=95)
            suffix = "_Segmentation.PNG" if number % 2 else "_segmentation.png"
            picture(masks / f"ISIC_{number:07d}{suffix}", 255 * disc(radius=3 + number % 4))
        (images / "LICENSE.txt").write_text("CC BY-NC 4.0")
        picture(images / f"ISIC_{number:07d}_superpixels.png", colour_noise(0))
        picture(masks / f"ISIC_{number:07d}_attribute_pigment_network.png", 255 * disc(radius=1))
    return tmp_path / "isic"


def test_isic_official_lists_and_attributes(isic: Path, tmp_path: Path) -> None:
    (isic / "ISIC2018_Task1-2_Test_Input").rename(isic / "ISIC2018_Task1-2_Test_Input.")
    (isic / "zip").mkdir()
    (isic / "ISIC2018_Task1-2_Test_Input.").rename(isic / "zip" / "ISIC2018_Task1-2_Test_Input")
    made = prepare("isic2018_dermoscopy", isic, tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "skin lesion"}
    assert [len(made.names(split)) for split in ("training", "validation", "test")] == [6, 2, 3]
    assert made.names("validation") == {"ISIC_0000007", "ISIC_0000008"}
    for number in (1, 2, 7, 11):
        assert (made.label(f"ISIC_{number:07d}") == disc(radius=3 + number % 4)).all()
    assert not any(made.remarks(kind) for kind in ("missing", "doubled", "unlabelled", "ignored"))


@pytest.mark.parametrize("lacking", ["Validation", "Test"])
def test_isic_without_later_ground_truth(isic: Path, tmp_path: Path, lacking: str) -> None:
    for path in (isic / f"ISIC2018_Task1_{lacking}_GroundTruth").iterdir():
        path.unlink()
    (isic / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_0000004_segmentation.png").unlink()
    made = prepare("isic2018_dermoscopy", isic, tmp_path / "out")
    numbers = (7, 8) if lacking == "Validation" else (9, 10, 11)
    assert [Path(path).name for path in made.remarks("unlabelled")] == [f"ISIC_{n:07d}.jpg" for n in numbers]
    (missing,) = made.remarks("missing")
    assert missing.startswith("the mask of") and missing.endswith("ISIC_0000004.jpg")
    drawn = "validation" if lacking == "Validation" else "test"
    assert made.names(drawn) < {f"ISIC_{n:07d}" for n in (1, 2, 3, 5, 6)}  # drawn from those for training
    assert len(made.names(drawn)) == 1


def test_isic_pictures_that_are_on_two_official_lists(isic: Path, tmp_path: Path) -> None:
    first, second = (
        isic / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000001.jpg",
        isic / "ISIC2018_Task1-2_Test_Input" / "ISIC_0000009.jpg",
    )
    second.write_bytes(first.read_bytes())
    made = prepare("isic2018_dermoscopy", isic, tmp_path / "out")
    assert made.remarks("doubled") == ["ISIC_0000001 and ISIC_0000009 are the same picture; they count as one patient"]
    assert "ISIC_0000001" not in made.names("training")
    assert "left out, because their patients are on a more held-out official list: ISIC_0000001" in made.printed


@pytest.mark.parametrize("kind", ["Input", "GroundTruth", "both"])
def test_isic_other_folders_are_refused(isic: Path, tmp_path: Path, kind: str) -> None:
    for path in list(isic.iterdir()):
        if kind == "both" or path.name.endswith(kind):
            path.rename(isic / path.name.replace("ISIC2018_", "ISIC2017_"))
    counts = {"Input": "0 pictures and 11 masks", "GroundTruth": "11 pictures and 0 masks", "both": "0 pictures and 0"}
    with pytest.raises(ValueError, match=f"holds {counts[kind]}.*expected folders such as ISIC2018_Task1-2_Training_I"):
        prepare("isic2018_dermoscopy", isic, tmp_path / "out")


@pytest.fixture
def uwaterloo(tmp_path: Path) -> Path:
    seed = 0
    for number, kind, sources in (
        (1, "melanoma", ("dermIS", "dermquest")),
        (2, "notmelanoma", ("dermis", "dermquest")),
    ):
        for source in sources:
            folder = tmp_path / "skin" / f"Skin Image Data Set-{number}" / "skin_data" / kind / source
            for stem in ("D1", "a_b 2", "10"):
                seed += 1
                picture(folder / f"{stem}_orig.jpg", colour_noise(seed), quality=95)
                picture(folder / f"{stem}_contour.png", 255 * disc(radius=2 + seed % 5), "RGB" if seed % 2 else None)
            (folder / "Thumbs.db").write_bytes(b"")
    return tmp_path / "skin"


def test_uwaterloo_one_stem_in_four_folders(uwaterloo: Path, tmp_path: Path) -> None:
    made = prepare("uwaterloo_dermoscopy", uwaterloo, tmp_path / "out", "--splits", "published")
    assert made.status == 0
    assert made.dataset.classes == {1: "skin lesion"}
    assert made.names("test") == {
        f"{kind}_{source}_{stem}"
        for kind in ("melanoma", "notmelanoma")
        for source in ("dermis", "dermquest")
        for stem in ("D1", "a_b_2", "10")
    }
    assert (made.label("melanoma_dermis_D1") == disc(radius=3)).all()
    assert (made.label("melanoma_dermquest_D1") == disc(radius=6)).all()  # filled, not an outline
    assert (made.label("notmelanoma_dermis_a_b_2") == disc(radius=5)).all()
    assert (made.label("notmelanoma_dermquest_10") == disc(radius=4)).all()
    assert not any(made.remarks(kind) for kind in ("missing", "doubled", "ignored"))


def test_uwaterloo_faults_are_named(uwaterloo: Path, tmp_path: Path) -> None:
    first = uwaterloo / "Skin Image Data Set-1" / "skin_data" / "melanoma"
    (first / "dermIS" / "D1_orig.jpg").unlink()
    (first / "dermquest" / "10_contour.png").unlink()
    picture(first / "dermquest" / "D1_contour.png", np.zeros((24, 30), np.uint8))
    other = uwaterloo / "copy" / "skin_data" / "melanoma" / "dermis" / "10_orig.jpg"
    picture(other, colour_noise(77))
    (uwaterloo / "notes.doc").write_bytes(b"x")
    made = prepare("uwaterloo_dermoscopy", uwaterloo, tmp_path / "out")
    assert made.status == 1
    assert [sentence.split(str(uwaterloo))[0] for sentence in made.remarks("missing")] == [
        "the picture of ",
        "the mask of ",
    ]
    differing, size = made.remarks("faulty")
    assert differing == f"{other} differs from {first / 'dermIS' / '10_orig.jpg'}, so the case is left out"
    assert "D1_contour.png has (24, 30) rows and columns, but its image (24, 32)" in size
    names = {case.name for cases in made.dataset.splits.values() for case in cases}
    assert len(names) == 8 and "melanoma_dermis_10" not in names
    assert [Path(path).name for path in made.remarks("ignored")] == ["notes.doc"]


@pytest.mark.parametrize("kinds", [("orig",), ("contour",), ()])
def test_uwaterloo_other_folders_are_refused(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    (tmp_path / "d").mkdir()
    for kind in kinds:
        picture(tmp_path / "d" / "melanoma" / "dermis" / f"D1_{kind}.jpg", colour_noise(1))
    with pytest.raises(ValueError, match=r"expected files such as skin_data/melanoma/dermis/SSM1_orig\.jpg"):
        prepare("uwaterloo_dermoscopy", tmp_path / "d", tmp_path / "out")
