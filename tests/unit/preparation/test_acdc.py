# SPDX-License-Identifier: Apache-2.0
"""ACDC: two frames a patient, official lists, labels with another geometry, a frame that is missing."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.unit.preparation.downloads import blocks, noise, prepare, volume


def add_patient(database: Path, part: str, number: int, *, es: int = 12, labelled: bool = True) -> None:
    folder = database / part / f"patient{number:03d}"
    volume(folder / f"{folder.name}_4d.nii.gz", noise(number, (9, 8, 4, 3)))
    (folder / "Info.cfg").write_text(f"ED: 1\nES: {es}\nGroup: DCM\nHeight: 184.0\n")
    for frame in (1, es):
        volume(folder / f"{folder.name}_frame{frame:02d}.nii.gz", noise(100 * number + frame))
        if labelled:
            path = folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz"
            volume(path, blocks(100 * number + frame, (1, 2, 3)), np.eye(4))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "ACDC" / "database"
    for number in range(1, 13):
        add_patient(folder, "training", number, es=8 + number)
    for number in (101, 102):
        add_patient(folder, "testing", number)
    (folder / "training" / "._patient001").mkdir()
    return folder


@pytest.mark.parametrize("above", [0, 1, 2])
def test_frames_values_and_official_lists(database: Path, tmp_path: Path, above: int) -> None:
    folder = [database, database.parent, tmp_path][above]
    made = prepare("acdc_mr", folder, tmp_path.parent / f"{tmp_path.name}_out")
    assert made.status == 0
    assert made.names("test") == {f"patient{n}_frame{f}" for n in (101, 102) for f in ("01", "12")}
    assert len(made.names("training")) == 22
    assert len({case.patient for case in made.dataset.cases("validation")}) == 1
    assert made.dataset.classes == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    assert (made.label("patient003_frame11") == blocks(311, (1, 2, 3))).all()
    assert (made.image("patient003_frame11") == noise(311)).all()
    label = nib.load(made.case("patient003_frame11").label)
    assert np.allclose(label.affine, np.diag([1.5, 1.5, 8, 1]))  # the image's: that of the label file is another


def test_missing_frames_and_labels_are_named(database: Path, tmp_path: Path) -> None:
    add_patient(database, "testing", 103, labelled=False)
    (database / "training" / "patient002" / "patient002_frame10.nii.gz").unlink()
    made = prepare("acdc_mr", database, tmp_path / "out")
    assert made.remarks("missing") == [
        "patient002: frame 10 of Info.cfg",
        "patient002_frame10: the image of patient002_frame10_gt.nii.gz",
    ]
    assert [Path(path).name for path in made.remarks("unlabelled")] == [
        "patient103_frame01.nii.gz",
        "patient103_frame12.nii.gz",
    ]
    assert "Missing (2):" in made.printed


@pytest.mark.parametrize("fault", ["value", "shape", "half", "cut off"])
def test_a_faulty_case_is_named_and_left_out(database: Path, tmp_path: Path, fault: str) -> None:
    patient = database / "training" / "patient004"
    image, label = patient / "patient004_frame12.nii.gz", patient / "patient004_frame12_gt.nii.gz"
    sentences = {
        "value": "holds the value 7, expected 0 or one of [1, 2, 3]",
        "shape": "has the shape (9, 8, 5), but its image (9, 8, 4)",
        "half": "holds the value 1.5, expected whole numbers",
        "cut off": "damaged, cut off or of another format",
    }
    if fault == "value":
        volume(label, blocks(1, (1, 7)))
    elif fault == "shape":
        volume(label, blocks(1, (1, 2), (9, 8, 5)))
    elif fault == "half":
        volume(label, blocks(1, (1, 2)).astype(np.float32) * 1.5)
    else:
        image.write_bytes(image.read_bytes()[:-60])
    made = prepare("acdc_mr", database, tmp_path / "out")
    assert made.status == 1
    (sentence,) = made.remarks("faulty")
    assert sentences[fault] in sentence and "patient004_frame12" in sentence
    assert "patient004_frame12" not in made.names("training") | made.names("validation")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some" / "files").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not ACDC: expected folders such as training/patient001"):
        prepare("acdc_mr", tmp_path / "some", tmp_path / "out")
    assert not (tmp_path / "out").exists()
