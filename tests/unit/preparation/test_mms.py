# SPDX-License-Identifier: Apache-2.0
"""M&Ms: two labelled frames of a 4-D file, named by a table that is wrong for some; folders with and without lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.preparation.downloads import blocks, noise, prepare, volume

CODES = ["A0S9V9", "A1B2C3", "D4E5F6", "G7H8I9", "J1K2L3", "M4N5O6"]
FRAMES = 6


def labels(seed: int, frames: Sequence[int]) -> NDArray[np.uint8]:
    """Labels in `frames` of a file of four axes; the left ventricle (1) is largest in the first of `frames`."""
    values = np.zeros((9, 8, 4, FRAMES), np.uint8)
    for place, frame in enumerate(frames):
        values[..., frame] = blocks(10 * seed + place, (1, 2, 3) if place == 0 else (1, 2, 2, 3, 3, 3))
    return values


def add_patient(
    folder: Path, code: str, seed: int, frames: Sequence[int], affine: NDArray[np.float64] | None = None
) -> None:
    volume(folder / f"{code}_sa.nii.gz", noise(seed, (9, 8, 4, FRAMES)), affine)
    volume(folder / f"{code}_sa_gt.nii.gz", labels(seed, frames), affine)


def write_table(path: Path, rows: Sequence[tuple[str, Any, Any]], *, is_new: bool = True, mark: str = "") -> None:
    """A table in the order of columns of a newer or of the older release."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_new:
        lines = [",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
        lines += [f"{n},{code},Siemens,A,1,{ed},{es},46,HCM,F,," for n, (code, ed, es) in enumerate(rows)]
    else:
        lines = ["External code;Vendor;ED;ES"] + [f"{code};A;{ed}.0;{es}.0" for code, ed, es in rows]
    path.write_text(mark + "\n".join([*lines, lines[0].translate({ord(c): None for c in lines[0] if c.isalnum()})]))


SHEARED = np.array([[1.5, 0.2, 0, -40], [0, 1.4, 0.3, 20], [0, 0, 8, 7], [0, 0, 0, 1]])


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "M&Ms" / "OpenDataset"
    for seed, code in enumerate(CODES[:4]):
        add_patient(root / "Training" / "Labeled" / code, code, seed, (0, 2 + seed % 3))
    add_patient(root / "Validation" / CODES[4], CODES[4], 4, (1, 4), SHEARED)
    add_patient(root / "Testing" / CODES[5], CODES[5], 5, (5, 2))
    add_patient(root / "Training" / "Unlabeled" / "X0X0X0", "X0X0X0", 6, ())
    rows = [(code, 0, 2 + seed % 3) for seed, code in enumerate(CODES[:4])]
    table = [*rows, (CODES[4], 1, 4), (CODES[5], 5, 2), ("X0X0X0", 0, 3)]
    write_table(root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv", table)
    (root / "Training" / "Labeled" / "._A0S9V9_sa.nii.gz").write_bytes(b"trace")
    return root


@pytest.mark.parametrize("above", [0, 1])
def test_the_frames_of_the_table_count_from_0(download: Path, tmp_path: Path, above: int) -> None:
    made = prepare("mms_mr", [download, download.parent][above], tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "left ventricle", 2: "myocardium", 3: "right ventricle"}
    assert made.names("validation") == {f"{CODES[4]}_ED", f"{CODES[4]}_ES"}
    assert made.names("test") == {f"{CODES[5]}_ED", f"{CODES[5]}_ES"}
    assert made.names("training") == {f"{code}_{phase}" for code in CODES[:4] for phase in ("ED", "ES")}
    for seed, code, ed, es in [(1, CODES[1], 0, 3), (4, CODES[4], 1, 4), (5, CODES[5], 5, 2)]:
        for name, frame in (("ED", ed), ("ES", es)):
            assert (made.image(f"{code}_{name}") == noise(seed, (9, 8, 4, FRAMES))[..., frame]).all()
            assert (made.label(f"{code}_{name}") == labels(seed, (ed, es))[..., frame]).all()
            assert made.case(f"{code}_{name}").patient == code
    assert [Path(path).name for path in made.remarks("unlabelled")] == ["X0X0X0_sa.nii.gz"]
    assert "note" not in made.content["prepared"]["remarks"]


def test_axes_that_are_not_at_right_angles_are_kept(download: Path, tmp_path: Path) -> None:
    made = prepare("mms_mr", download, tmp_path / "out")
    for file in (made.case(f"{CODES[4]}_ES").image, made.case(f"{CODES[4]}_ES").label):
        assert np.allclose(nib.load(file).affine, SHEARED, atol=1e-5)


@pytest.mark.parametrize(
    ("row", "frames", "taken"),
    [
        ((0, 3), (0, 4), {"ED": 0, "ES": 4}),
        ((4, 9), (4, 0), {"ED": 4, "ES": 0}),
        ((2, 3), (5, 1), {"ED": 5, "ES": 1}),  # neither is labelled: the larger ventricle is that of end-diastole
        (("", 1), (5, 1), {"ED": 5, "ES": 1}),
        ((0, 0), (5, 0), {"ED": 0, "ES": 5}),
        (None, (3, 4), {"ED": 3, "ES": 4}),
    ],
)
def test_wrong_frames_in_the_table_are_listed(
    tmp_path: Path, row: tuple[Any, Any] | None, frames: tuple[int, int], taken: dict[str, int]
) -> None:
    root = tmp_path / "MnM"
    add_patient(root / "dataset" / CODES[0], CODES[0], 1, frames)
    add_patient(root / "dataset" / CODES[1], CODES[1], 2, (0, 1))
    rows = [(CODES[1], 0, 1)] + ([] if row is None else [(CODES[0], *row)])
    write_table(root / "dataset_information.csv", rows, is_new=row is None, mark="\ufeff")
    made = prepare("mms_mr", root, tmp_path / "out")
    (sentence,) = made.remarks("note")
    assert sentence.startswith(f"{CODES[0]}: the table has ") and f"the labels are in {sorted(frames)}" in sentence
    for phase, frame in taken.items():
        assert (made.label(f"{CODES[0]}_{phase}") == labels(1, frames)[..., frame]).all()
        assert (made.image(f"{CODES[0]}_{phase}") == noise(1, (9, 8, 4, FRAMES))[..., frame]).all()
    assert {case.patient for cases in made.dataset.splits.values() for case in cases} == set(CODES[:2])


def test_what_is_missing_doubled_or_empty_is_named(download: Path, tmp_path: Path) -> None:
    (download / "Training" / "Labeled" / CODES[0] / f"{CODES[0]}_sa.nii.gz").unlink()
    (download / "Training" / "Labeled" / CODES[1] / f"{CODES[1]}_sa_gt.nii.gz").unlink()
    volume(download / "Training" / "Labeled" / CODES[2] / f"{CODES[2]}_sa_gt.nii.gz", labels(1, ()))
    volume(download / "Training" / "Labeled" / CODES[3] / f"{CODES[3]}_sa_gt.nii.gz", labels(1, (1, 2, 4)))
    add_patient(download / "Training" / CODES[4], CODES[4], 9, (0, 1))
    made = prepare("mms_mr", download, tmp_path / "out")
    assert [Path(sentence.split()[-1]).name for sentence in made.remarks("missing")] == [
        "table",
        f"{CODES[0]}_sa_gt.nii.gz",
    ]
    assert made.remarks("missing")[0] == f"{CODES[0]}_sa.nii.gz, which is in the table"
    assert len(made.remarks("unlabelled")) == 3 and made.remarks("unlabelled")[1].endswith("its label is empty")
    faulty = made.remarks("faulty")
    assert f"{CODES[3]}_sa_gt.nii.gz: frames with a label are [1, 2, 4], expected two" in faulty[-1]
    assert len(faulty) == 3 and all(CODES[4] in sentence and "differs from" in sentence for sentence in faulty[:2])
    assert made.status == 1
    assert {case.patient for cases in made.dataset.splits.values() for case in cases} == {CODES[5]}


def test_without_a_table_the_labelled_frames_are_taken(download: Path, tmp_path: Path) -> None:
    for path in download.glob("*.csv"):
        path.unlink()
    made = prepare("mms_mr", download, tmp_path / "out")
    assert len(made.remarks("note")) == 1 and "no table with the columns External code, ED, ES" in made.printed
    assert (made.label(f"{CODES[5]}_ED") == labels(5, (5, 2))[..., 5]).all()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    volume(tmp_path / "download" / "patient001" / "patient001_frame01.nii.gz", noise(1))
    with pytest.raises(ValueError, match="is not M&Ms: expected files such as Training/Labeled/A0S9V9"):
        prepare("mms_mr", tmp_path / "download", tmp_path / "out")
    assert not (tmp_path / "out").exists()
