# SPDX-License-Identifier: Apache-2.0
"""BraTS: names and values of 2017 to 2023, four sequences, points in time, an odd name, other tumours and years."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.preparation.downloads import Prepared, blocks, noise, prepare, volume

OLD = ("t1", "t1ce", "t2", "flair")
NEW = ("t1n", "t1c", "t2w", "t2f")


def case(parent: Path, name: str, seed: int, *, labelled: bool = True, suffix: str = ".nii.gz") -> Path:
    """Images are numbered by sequence: 10 * seed for T1, + 1 for T1 with contrast agent, + 2 for T2, + 3 for FLAIR."""
    is_new = name.startswith("BraTS-")
    joint = "-" if is_new else "_"
    for number, kind in enumerate(NEW if is_new else OLD):
        volume(parent / name / f"{name}{joint}{kind}{suffix}", noise(10 * seed + number))
    if labelled:
        values = (1, 2, 3) if is_new else (1, 2, 4)
        volume(parent / name / f"{name}{joint}seg{suffix}", blocks(seed, values))
    return parent / name


def names(made: Prepared) -> set[str]:
    return made.names("training") | made.names("validation") | made.names("test")


@pytest.mark.parametrize(
    ("folder", "stem", "suffix"),
    [
        ("RSNA_ASNR_MICCAI_BraTS2021_TrainingData", "BraTS2021_0000", ".nii.gz"),
        ("MICCAI_BraTS2020_TrainingData", "BraTS20_Training_00", ".nii"),
        ("MICCAI_BraTS_2019_Data_Training/HGG", "BraTS19_CBICA_AA", ".nii.gz"),
        ("HGG", "Brats18_2013_2_", ".nii.gz"),
    ],
)
def test_cases_to_2021_have_the_enhancing_tumour_as_4(tmp_path: Path, folder: str, stem: str, suffix: str) -> None:
    for number in range(1, 5):
        case(tmp_path / "d" / folder, f"{stem}{number}", number, suffix=suffix)
    case(tmp_path / "d" / "validation", f"{stem}9", 9, labelled=False, suffix=suffix)
    (tmp_path / "d" / "name_mapping.csv").write_text("x")
    made = prepare("brats_mr", tmp_path / "d", tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "necrotic tumour core", 2: "peritumoral oedema", 3: "enhancing tumour"}
    assert names(made) == {f"{stem}{n}" for n in range(1, 5)}
    original = blocks(3, (1, 2, 4))
    assert (made.label(f"{stem}3") == np.where(original == 4, 3, original)).all()
    assert (made.image(f"{stem}3") == noise(33)).all()
    assert len(made.remarks("unlabelled")) == 1


@pytest.mark.parametrize("above", ["ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData", "double/double"])
def test_cases_of_2023_are_grouped_by_patient(tmp_path: Path, above: str) -> None:
    for patient in range(4):
        for time in range(2):
            case(tmp_path / "d" / above, f"BraTS-GLI-0000{patient}-00{time}", 2 * patient + time)
    case(tmp_path / "d" / above, "BraTS-SSA-00002-000", 20)
    made = prepare("brats_mr", tmp_path / "d", tmp_path / "out")
    assert made.status == 0
    assert (made.label("BraTS-GLI-00002-001") == blocks(5, (1, 2, 3))).all()
    assert (made.image("BraTS-GLI-00002-001") == noise(53)).all()
    assert made.case("BraTS-GLI-00002-001").patient == made.case("BraTS-GLI-00002-000").patient == "BraTS-GLI-00002"
    assert made.case("BraTS-SSA-00002-000").patient == "BraTS-SSA-00002"
    lists = [{case.patient for case in made.dataset.cases(split)} for split in ("training", "validation", "test")]
    assert sum(map(len, lists)) == len(set.union(*lists)) == 5


@pytest.mark.parametrize(
    ("channel", "number"),
    [("t1", 0), ("t1ce", 1), ("T1gd", 1), ("t2", 2), ("t2w", 2), ("FLAIR", 3), ("t2f", 3)],
)
@pytest.mark.parametrize("name", ["BraTS2021_00001", "BraTS-GLI-00002-000"])
def test_the_channel_is_chosen_under_the_names_of_all_years(
    tmp_path: Path, channel: str, number: int, name: str
) -> None:
    case(tmp_path / "d", name, 1)
    made = prepare("brats_mr", tmp_path / "d", tmp_path / "out", "--channel", channel)
    assert (made.image(name) == noise(10 + number)).all()
    assert made.content["channel"] == OLD[number]


def test_an_unknown_channel_is_refused(tmp_path: Path) -> None:
    case(tmp_path / "d", "BraTS2021_00001", 1)
    with pytest.raises(ValueError, match="--channel is 'adc', expected one of t1, t1ce, t2, flair"):
        prepare("brats_mr", tmp_path / "d", tmp_path / "out", "--channel", "adc")


def test_the_odd_name_of_case_355(tmp_path: Path) -> None:
    folder = case(tmp_path / "d", "BraTS20_Training_355", 5, suffix=".nii")
    (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    made = prepare("brats_mr", tmp_path / "d", tmp_path / "out")
    original = blocks(5, (1, 2, 4))
    assert (made.label("BraTS20_Training_355") == np.where(original == 4, 3, original)).all()
    assert "W39_1998.09.19_Segm.nii is taken as the label of BraTS20_Training_355" in made.remarks("note")[0]


def test_a_missing_sequence_is_named(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        case(tmp_path / "d", f"BraTS2021_0000{number}", number, labelled=number != 3)
    (tmp_path / "d" / "BraTS2021_00002" / "BraTS2021_00002_flair.nii.gz").unlink()
    (tmp_path / "d" / "BraTS2021_00003" / "BraTS2021_00003_flair.nii.gz").unlink()
    made = prepare("brats_mr", tmp_path / "d", tmp_path / "out")
    assert sorted(made.remarks("missing")) == sorted(
        [
            f"flair of BraTS2021_00003, in {tmp_path / 'd' / 'BraTS2021_00003'}",
            f"the image of {tmp_path / 'd' / 'BraTS2021_00002' / 'BraTS2021_00002_seg.nii.gz'}, the sequence flair",
        ]
    )
    assert names(made) == {"BraTS2021_00001"}


@pytest.mark.parametrize(("name", "value"), [("BraTS2021_00001", 3), ("BraTS-GLI-00001-000", 4)])
def test_the_values_of_another_year_are_an_error(tmp_path: Path, name: str, value: int) -> None:
    whole = f"{name[:10]}0009{name[14:]}"
    case(tmp_path / "d", whole, 9)
    folder = case(tmp_path / "d", name, 1)
    volume(next(folder.glob("*seg*")), blocks(1, (1, 2, value)))
    made = prepare("brats_mr", tmp_path / "d", tmp_path / "out")
    assert made.status == 1
    assert f"holds the value {value}, expected 0 or one of" in made.remarks("faulty")[0]
    assert names(made) == {whole}


@pytest.mark.parametrize(
    ("first", "second", "years"),
    [
        ("BraTS2021_00001", "BraTS-GLI-00001-000", "2021 and 2023"),
        ("Brats18_2013_2_1", "BraTS20_Training_001", "2018 and 2020"),
        ("BraTS19_2013_2_1", "Brats17_2013_2_1", "2017 and 2019"),
    ],
)
def test_several_years_are_refused(tmp_path: Path, first: str, second: str, years: str) -> None:
    case(tmp_path / "d", first, 1)
    case(tmp_path / "d", second, 2)
    with pytest.raises(ValueError, match=f"holds BraTS {years} .* same patients under other numbers"):
        prepare("brats_mr", tmp_path / "d", tmp_path / "out")


def test_other_tumours_of_2023_are_left_out_by_name(tmp_path: Path) -> None:
    case(tmp_path / "d", "BraTS-GLI-00001-000", 1)
    case(tmp_path / "d", "BraTS-MEN-00001-000", 2)
    made = prepare("brats_mr", tmp_path / "d", tmp_path / "out")
    assert names(made) == {"BraTS-GLI-00001-000"}
    assert made.remarks("ignored") == ["5 files of BraTS-MEN, which is not glioma"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("BraTS-GLI-02060-100/BraTS-GLI-02060-100-seg.nii.gz", "is of BraTS 2024, after treatment"),
        ("imagesTr/BRATS_001.nii.gz", "is of the Decathlon's Task01_BrainTumour"),
        ("BraTS-MEN-00001-000/BraTS-MEN-00001-000-seg.nii.gz", "expected case folders such as .* not glioma"),
        ("patient/flair.nii.gz", "is not BraTS: expected case folders such as BraTS2021_00000"),
    ],
)
def test_other_downloads_are_refused(tmp_path: Path, name: str, sentence: str) -> None:
    volume(tmp_path / "d" / name, blocks(1, (1,)))
    with pytest.raises(ValueError, match=sentence):
        prepare("brats_mr", tmp_path / "d", tmp_path / "out")
