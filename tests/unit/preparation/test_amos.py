# SPDX-License-Identifier: Apache-2.0
"""AMOS: CT and MRI by number, patients by a table whose rows of MRI are perhaps shifted, traces of macOS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.preparation.downloads import Prepared, blocks, noise, prepare, volume

CT = {"Tr": (1, 13, 19, 20, 26, 38, 44, 50, 64, 67, 88, 95, 138, 410), "Va": (8, 119, 256)}
MR = {"Tr": (507, 508, 510, 511, 517, 520, 530, 540, 554, 578), "Va": (541, 600)}
HEADER = (
    "amos_id,Patient's Birth Date,Patient's Sex,Patient's Age,Manufacturer's Model Name,Manufacturer,"
    "Acquisition Date,Site"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "zenodo" / "amos22"
    for part in ("Tr", "Va"):
        for number in (*CT[part], *MR[part]):
            values = range(1, 16) if number <= 500 else range(1, 14)
            volume(folder / f"images{part}" / f"amos_{number:04d}.nii.gz", noise(number))
            volume(folder / f"labels{part}" / f"amos_{number:04d}.nii.gz", blocks(number, list(values)))
    volume(folder / "imagesTs" / "amos_0002.nii.gz", noise(2))
    volume(folder / "imagesTs" / "amos_5001.nii.gz", noise(5001))
    trace = folder.parent / "__MACOSX" / "amos22" / "imagesTr" / "._amos_0001.nii.gz"
    trace.parent.mkdir(parents=True)
    trace.write_bytes(b"\0\5\x16\7" * 40)
    (folder / "imagesTr" / "._amos_0013.nii.gz").write_bytes(b"\0\5\x16\7" * 40)
    stated = {"licence": "CC-BY-SA 4.0", "labels": {"0": "background", "1": "spleen"}}
    (folder / "dataset.json").write_text(json.dumps(stated))
    return folder


def add_table(folder: Path, persons: Mapping[int, str], mri: Mapping[int, str]) -> None:
    """Rows of CT from 1 to 500 and of MRI from 500 to 599; `persons` and `mri` say who is in a row, else somebody."""
    rows = [f"{n},{persons.get(n, f'1900{n:04d},F')},039Y,Optima,GE,20200402,people" for n in range(1, 501)]
    rows += [f"{n},{mri.get(n, f'1800{n:04d},M')},,Prisma,SIEMENS,20200402,center" for n in range(500, 600)]
    (folder / "labeled_data_meta_0000_0599.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def patients(made: Prepared) -> dict[int, str]:
    return {int(case.name[-4:]): case.patient for cases in made.dataset.splits.values() for case in cases}


@pytest.mark.parametrize("above", [0, 1])
def test_ct_has_its_numbers_lists_values_and_licence(root: Path, tmp_path: Path, above: int) -> None:
    made = prepare("amos_ct", [root, root.parent][above], tmp_path / "out")
    assert made.status == 0
    assert made.names("test") == {f"amos_{n:04d}" for n in CT["Va"]}
    assert made.names("training") | made.names("validation") == {f"amos_{n:04d}" for n in CT["Tr"]}
    assert [made.dataset.classes[index] for index in (1, 2, 5, 10, 13, 15)] == [
        *("spleen", "right kidney", "oesophagus", "pancreas", "duodenum", "prostate or uterus")
    ]
    assert (made.label("amos_0410") == blocks(410, list(range(1, 16)))).all()
    assert (made.image("amos_0410") == noise(410)).all()
    assert made.content["licence"] == "CC BY 4.0 (Zenodo record); the download's dataset.json says: CC-BY-SA 4.0"
    assert made.content["modality"] == {"0": "CT"}
    assert [Path(path).name for path in made.remarks("unlabelled")] == ["amos_0002.nii.gz"]
    assert "scans of another, unlabelled release (1)" in made.remarks("ignored")[0]
    assert "amos_5001.nii.gz" in made.remarks("ignored")[0]


def test_mri_has_the_other_numbers_and_may_lack_classes(root: Path, tmp_path: Path) -> None:
    made = prepare("amos_mr", root, tmp_path / "out")
    assert made.names("test") == {"amos_0541", "amos_0600"}
    assert made.names("training") | made.names("validation") == {f"amos_{n:04d}" for n in MR["Tr"]}
    assert (made.label("amos_0600") == blocks(600, list(range(1, 14)))).all()
    assert made.content["modality"] == {"0": "MRI"}


@pytest.mark.parametrize("beside", [True, False])
def test_scans_of_one_person_are_one_patient(root: Path, tmp_path: Path, beside: bool) -> None:
    twice = dict.fromkeys((13, 138), "19500101,M") | dict.fromkeys((19, 119), "19600101,F")
    twice |= {20: "19700101,F", 26: "19700101,M"}  # the sex differs
    twice |= dict.fromkeys((38, 44, 50), ",F")  # no date: nothing is known
    add_table(root.parent if beside else root, twice, {})
    made = prepare("amos_ct", root, tmp_path / "out")
    found = patients(made)
    assert found[13] == found[138] == "amos_0013"
    assert len({found[number] for number in (20, 26, 38, 44, 50)}) == 5
    assert found[119] == "amos_0019" and 19 not in found  # 119 is on the official test list
    assert "more held-out official list: amos_0019" in made.content["splits"]
    assert not made.remarks("note")


def test_rows_of_mri_are_read_as_numbered_and_as_one_lower(root: Path, tmp_path: Path) -> None:
    add_table(root, {256: "19330101,F"}, {507: "19440101,M", 510: "19440101,M", 599: "19330101,F"})
    found = patients(prepare("amos_mr", root, tmp_path / "out"))
    assert found[507] == found[510] == "amos_0507"
    assert found[508] == found[511] == "amos_0508"
    assert found[600] == "amos_0256"  # by row 599 if rows are one lower, and that is the person of CT 256
    assert len(set(found.values())) == len(found) - 2


def test_without_a_table_each_scan_counts_as_a_patient(root: Path, tmp_path: Path) -> None:
    made = prepare("amos_ct", root, tmp_path / "out")
    assert all(patient == f"amos_{number:04d}" for number, patient in patients(made).items())
    assert made.remarks("note")[0].startswith("no labeled_data_meta_0000_0599.csv of the Zenodo record")


def test_another_table_is_named(root: Path, tmp_path: Path) -> None:
    (root / "labeled_data_meta_0000_0599.csv").write_text("id,sex\n1,F\n")
    made = prepare("amos_ct", root, tmp_path / "out")
    assert "has not the columns amos_id" in made.remarks("faulty")[0]


def test_a_label_without_an_image_is_named(root: Path, tmp_path: Path) -> None:
    (root / "imagesTr" / "amos_0020.nii.gz").unlink()
    made = prepare("amos_ct", root, tmp_path / "out")
    assert made.remarks("missing") == [f"the image of {root / 'labelsTr' / 'amos_0020.nii.gz'}"]


@pytest.mark.parametrize("name", ["amos_ct", "amos_mr"])
def test_another_download_is_refused(tmp_path: Path, name: str) -> None:
    volume(tmp_path / "d" / "imagesTr" / "amos_0001_0000.nii.gz", noise(1))  # nnU-Net's copy
    with pytest.raises(ValueError, match=r"is not AMOS: expected imagesTr/amos_0001\.nii\.gz"):
        prepare(name, tmp_path / "d", tmp_path / "out")
