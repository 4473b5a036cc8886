# SPDX-License-Identifier: Apache-2.0
"""M&Ms-2: both views and phases of a patient on one list, a table with empty rows, folders of several releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.preparation.downloads import blocks, noise, prepare, volume

SHAPES = {"SA": (9, 8, 4), "LA": (9, 8, 1)}
HEADER = "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n"


def seed(number: int, view: str, phase: str) -> int:
    return 10 * number + 2 * (view == "LA") + (phase == "ES")


def add_patient(folder: Path, number: int) -> None:
    for view, shape in SHAPES.items():
        stem = folder / f"{number:03d}" / f"{number:03d}_{view}"
        volume(stem.with_name(f"{stem.name}_CINE.nii.gz"), noise(number, (*shape, 3)))
        for phase in ("ED", "ES"):
            volume(stem.with_name(f"{stem.name}_{phase}.nii.gz"), noise(seed(number, view, phase), shape))
            label = blocks(seed(number, view, phase), (1, 2, 3), shape)
            volume(stem.with_name(f"{stem.name}_{phase}_gt.nii.gz"), label)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "MnM2"
    for number in (1, 160, 161, 200, 201, 360):
        add_patient(root / "dataset", number)
    rows = [f"{n},HCM,SIEMENS,SymphonyTim,1.5" for n in (1, 160, 161, 200, 201, 360)]
    (root / "dataset_information.csv").write_text(HEADER + "\n".join([*rows, ",,,,", ",,,,"]) + "\n")
    return root


@pytest.mark.parametrize(
    ("options", "views"), [((), ["SA"]), (("--channel", "la"), ["LA"]), (("--channel", "both"), ["SA", "LA"])]
)
def test_views_phases_and_official_lists(
    download: Path, tmp_path: Path, options: tuple[str, ...], views: list[str]
) -> None:
    made = prepare("mms2_mr", download, tmp_path / "out", *options)
    assert made.status == 0 and not made.content["prepared"]["remarks"]
    assert made.dataset.classes == {1: "left ventricle", 2: "myocardium", 3: "right ventricle"}
    for split, numbers in (("training", (1, 160)), ("validation", (161, 200)), ("test", (201, 360))):
        names = {f"{n:03d}_{view}_{phase}" for n in numbers for view in views for phase in ("ED", "ES")}
        assert made.names(split) == names
    for view in views:
        for number, phase in ((1, "ED"), (200, "ES"), (360, "ED")):
            name = f"{number:03d}_{view}_{phase}"
            assert (made.image(name) == noise(seed(number, view, phase), SHAPES[view])).all()
            assert (made.label(name) == blocks(seed(number, view, phase), (1, 2, 3), SHAPES[view])).all()
            assert made.case(name).patient == f"{number:03d}"


def test_another_view_replaces_the_first(download: Path, tmp_path: Path) -> None:
    prepare("mms2_mr", download, tmp_path / "out")
    made = prepare("mms2_mr", download, tmp_path / "out", "--channel", "LA")
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {
        f"{name}.nii.gz" for split in ("training", "validation", "test") for name in made.names(split)
    }
    assert all("_LA_" in name for name in made.names("training"))


@pytest.mark.parametrize(
    "folders", [("training", "validation", "test"), ("", "", ""), ("training", "training", "testing")]
)
def test_folders_of_other_releases(tmp_path: Path, folders: tuple[str, str, str]) -> None:
    root = tmp_path / "download" / "MnM2"
    for folder, number in zip(folders, (2, 170, 300), strict=True):
        add_patient(root / folder, number)
    made = prepare("mms2_mr", root.parent, tmp_path / "out")
    assert made.names("training") == {"002_SA_ED", "002_SA_ES"}
    assert made.names("validation") == {"170_SA_ED", "170_SA_ES"}
    assert made.names("test") == {"300_SA_ED", "300_SA_ES"}


def test_what_is_missing_or_doubled_is_named(download: Path, tmp_path: Path) -> None:
    table = download / "dataset_information.csv"
    table.write_text(table.read_text().replace(",,,,", "77.0,HCM,SIEMENS,SymphonyTim,1.5", 1))
    (download / "dataset" / "001" / "001_SA_ED.nii.gz").unlink()
    (download / "dataset" / "160" / "160_SA_ES_gt.nii.gz").unlink()
    add_patient(download / "training", 161)
    add_patient(download / "dataset", 361)
    made = prepare("mms2_mr", download, tmp_path / "out")
    assert made.remarks("missing")[0] == "the folder 077, which is in the table"
    assert made.remarks("missing")[1].endswith("001/001_SA_ED.nii.gz, the image of a label")
    assert [Path(path).name for path in made.remarks("unlabelled")] == ["160_SA_ES.nii.gz"]
    (faulty,) = made.remarks("faulty")
    assert "patient 161 is in " in faulty and "training/161" in faulty and made.status == 1
    assert made.names("validation") == {"200_SA_ED", "200_SA_ES"}
    assert [Path(path).name for path in made.remarks("ignored")] == ["361"]
    assert made.names("training") == {"001_SA_ES", "160_SA_ED"}


def test_another_folder_or_view_is_refused(download: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--channel is axial, expected SA"):
        prepare("mms2_mr", download, tmp_path / "out", "--channel", "axial")
    (tmp_path / "other" / "001").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not M&Ms-2: expected folders such as dataset/001"):
        prepare("mms2_mr", tmp_path / "other", tmp_path / "out")
