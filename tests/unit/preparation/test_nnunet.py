# SPDX-License-Identifier: Apache-2.0
"""nnU-Net raw folders: both versions, channels, regions, ignored voxels, splits, own exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.unit.preparation.downloads import blocks, noise, prepare, volume
from tests.unit.preparation.nnunet_folders import LABELS, NAMES, TURNED, add_cases, describe, write


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("above", [0, 2])
def test_both_versions(tmp_path: Path, version: int, above: int) -> None:
    folder = tmp_path / "raw" / "nnUNet_raw" / ("Task007_My_Organs" if version == 1 else "Dataset007_My_Organs")
    add_cases(folder, NAMES)
    add_cases(folder, ["t1", "t2"], part="Ts")
    (folder / "imagesTr" / "._b_0000.nii.gz").write_bytes(b"trace")
    describe(folder, version, LABELS)
    made = prepare("nnunet", [folder, folder.parent, tmp_path / "raw"][above], tmp_path / "out")
    assert made.status == 0
    assert made.dataset.name == "my_organs" and made.dataset.modality == "CT"
    assert made.dataset.classes == {1: "liver", 2: "spleen"}
    assert made.names("test") == {"t1", "t2"}
    assert made.names("training") | made.names("validation") == set(NAMES)
    for number, name in enumerate(NAMES, start=1):
        assert (made.image(name) == noise(10 * number)).all()
        assert (made.label(name) == blocks(number, (1, 2))).all()
        assert np.allclose(nib.load(made.case(name).label).affine, TURNED, atol=1e-5)
    assert made.remarks("note") == ["no patients are named: each case counts as one"]
    assert made.content["licence"] == ("CC BY 4.0" if version == 1 else "not stated")


@pytest.mark.parametrize(("option", "channel"), [(None, 0), ("1", 1), ("adc", 1), ("T2", 0)])
def test_channels_and_what_is_missing(tmp_path: Path, option: str | None, channel: int) -> None:
    folder = tmp_path / "Dataset005_Prostate"
    add_cases(folder, NAMES, channels=2)
    (folder / "imagesTr" / "b_0001.nii.gz").unlink()
    (folder / "imagesTr" / "c_0000.nii.gz").unlink()
    (folder / "labelsTr" / "d.nii.gz").unlink()
    (folder / "imagesTr" / "notes.txt").write_text("x")
    write(folder / "imagesTr" / "case-1_0002.nii.gz", noise(0))
    write(folder / "labelsTr" / "other.nii.gz", blocks(0, (1,)))
    describe(folder, 2, {"background": 0, "PZ": 1, "TZ": 2}, ("T2", "ADC"), numTraining=7)
    made = prepare("nnunet", folder, tmp_path / "out", *([] if option is None else ["--channel", option]))
    assert made.dataset.modality == "MRI" and made.content["channel"] == ["T2", "ADC"][channel]
    kept = {"la_003_0001", "case-1", *(["b"] if channel == 0 else ["c"])}
    assert {case.name for cases in made.dataset.splits.values() for case in cases} == kept
    for name in kept:
        number = NAMES.index(name) + 1
        assert (made.image(name) == noise(10 * number + channel)).all()
        assert (made.label(name) == blocks(number, (1, 2))).all()
    missing = made.remarks("missing")
    assert missing[0].startswith("the image of ") and missing[0].endswith("other.nii.gz")
    assert missing[1:] == ["b: channel 1 (ADC)", "c: channel 0 (T2)", "d: the label"]
    assert any(note == "dataset.json counts 7 training cases, the folder holds 5" for note in made.remarks("note"))
    assert [sentence.split(":")[0].split("/")[-1] for sentence in made.remarks("ignored")] == [
        "notes.txt",
        "case-1_0002.nii.gz",
    ]


@pytest.mark.parametrize(
    ("labels", "values", "classes", "mapping", "regions"),
    [
        (
            {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": [3]},
            (1, 2, 3),
            {1: "whole tumour without tumour core", 2: "tumour core without enhancing", 3: "enhancing"},
            {1: 1, 2: 2, 3: 3},
            {
                "whole tumour": ["whole tumour without tumour core", "tumour core without enhancing", "enhancing"],
                "tumour core": ["tumour core without enhancing", "enhancing"],
                "enhancing": ["enhancing"],
            },
        ),
        (
            {"background": 0, "kidney": [1, 2], "spleen": 3},
            (1, 2, 3),
            {1: "kidney", 2: "spleen"},
            {1: 1, 2: 1, 3: 2},
            None,
        ),
        (
            {"background": 0, "a": [1, 2], "b": [2, 5]},
            (1, 2, 5),
            {1: "a without b", 2: "a and b", 3: "b without a"},
            {1: 1, 2: 2, 5: 3},
            {"a": ["a without b", "a and b"], "b": ["a and b", "b without a"]},
        ),
    ],
)
def test_regions_become_their_parts(
    tmp_path: Path,
    labels: dict[str, Any],
    values: tuple[int, ...],
    classes: dict[int, str],
    mapping: dict[int, int],
    regions: dict[str, list[str]] | None,
) -> None:
    folder = tmp_path / "Dataset137_Tumours"
    add_cases(folder, NAMES, values)
    describe(folder, 2, labels, ("flair",), regions_class_order=[1, 2, 3])
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.dataset.classes == classes
    assert made.content.get("regions") == regions
    expected = blocks(3, values)
    table = np.zeros(256, np.uint8)
    table[list(mapping)] = list(mapping.values())
    assert (made.label("b") == table[expected]).all()


def test_a_case_with_ignored_voxels_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset011_Scribbles"
    add_cases(folder, NAMES)
    label = blocks(2, (1, 2))
    label[3, 4:6, 1] = 3
    write(folder / "labelsTr" / "case-1.nii.gz", label)
    describe(folder, 2, {**LABELS, "ignore": 3})
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.status == 1
    assert made.dataset.classes == {1: "liver", 2: "spleen"}
    (faulty,) = made.remarks("faulty")
    assert "case-1.nii.gz has 2 voxels of the value 3, which says that they are to be ignored" in faulty
    assert {case.name for cases in made.dataset.splits.values() for case in cases} == set(NAMES) - {"case-1"}


@pytest.mark.parametrize("place", ["beside", "preprocessed"])
def test_fold_0_is_the_validation_list(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "nnUNet_raw" / "Dataset012_Folds"
    add_cases(folder, NAMES)
    describe(folder, 2, LABELS)
    target = folder if place == "beside" else tmp_path / "nnUNet_preprocessed" / folder.name
    target.mkdir(parents=True, exist_ok=True)
    folds = [{"train": ["c", "la_003_0001", "gone"], "val": ["b", "case-1"]}, {"train": ["b"], "val": ["c"]}]
    (target / "splits_final.json").write_text(json.dumps(folds))
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.names("validation") == {"b", "case-1"}
    assert made.names("training") | made.names("test") == {"c", "la_003_0001", "d"}
    assert made.remarks("missing") == [f"gone, which is in {target / 'splits_final.json'}"]
    assert "d is not in fold 0 of splits_final.json; it counts as training" in made.remarks("note")


def test_validation_and_test_folders(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset018_Folders"
    add_cases(folder, NAMES)
    add_cases(folder, ["v1", "v2"], part="Val")
    write(folder / "imagesTs" / "t1_0000.nii.gz", noise(1))
    (folder / "splits_final.pkl").write_bytes(b"never opened")
    describe(folder, 2, LABELS, name="肝")
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.dataset.name == "nnunet" and made.names("validation") == {"v1", "v2"}
    assert (made.label("v2") == blocks(2, (1, 2))).all() and (made.image("v2") == noise(20)).all()
    assert made.remarks("unlabelled") == [f"{folder / 'imagesTs'}: 1 files, without labels"]
    assert "a pickle may run any program" in made.remarks("ignored")[0]


def test_files_that_the_description_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Dataset013_Named"
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    named = {}
    for number, name in enumerate(NAMES, start=1):
        write(tmp_path / "elsewhere" / f"{number}.nii.gz", noise(number))
        write(folder / "masks" / f"{name}.nii.gz", blocks(number, (1, 2)))
        named[name] = {"images": [f"$SCANS/{number}.nii.gz"], "label": f"masks/{name}.nii.gz"}
    named["gone"] = {"images": ["$SCANS/9.nii.gz"], "label": "masks/b.nii.gz"}
    describe(folder, 2, LABELS, dataset=named)
    made = prepare("nnunet", folder, tmp_path / "out")
    assert (made.image("c") == noise(4)).all() and (made.label("c") == blocks(4, (1, 2))).all()
    assert made.remarks("missing") == ["gone: channel 0 (CT)"]


def test_a_folder_of_export_dataset_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset500_site"
    names = [f"site_{number:03d}" for number in range(1, 6)]
    add_cases(folder, names)
    describe(folder, 2, LABELS, name="site", codes={"liver": {}}, overwrite_image_reader_writer="NibabelIO")
    cases = [
        {"case": name, "patient": number // 2, "structures": ["liver"] if number == 4 else ["spleen", "liver"]}
        for number, name in enumerate(names)
    ]
    (folder / "provenance.json").write_text(json.dumps({"cases": cases}))
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:2] + names[4:], "val": names[2:4]}]))
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.status == 0
    assert made.names("training") == {"site_001", "site_002"} and made.names("validation") == {"site_003", "site_004"}
    assert [made.case(name).patient for name in names[:4]] == ["patient 0", "patient 0", "patient 1", "patient 1"]
    assert made.remarks("unlabelled") == ["site_005: its label says nothing about spleen"]
    for number, name in enumerate(names[:4], start=1):
        assert (made.image(name) == noise(10 * number)).all() and (made.label(name) == blocks(number, (1, 2))).all()


@pytest.mark.parametrize(
    ("told", "classes", "kept"),
    [
        (["ab", "ab", "ab", "ac"], ["a", "b"], [0, 1, 2]),  # one label with another structure
        (["a", "a", "a", "abc", "ab"], ["a"], [0, 1, 2, 3, 4]),
        (["b", "b", "a", "c"], ["b"], [0, 1]),
    ],
)
def test_structures_that_few_exported_labels_tell_of_are_no_classes(
    tmp_path: Path, told: list[str], classes: list[str], kept: list[int]
) -> None:
    folder = tmp_path / "Dataset501_site"
    names = [f"case_{number:04d}" for number in range(1, len(told) + 1)]
    add_cases(folder, names, (1, 2, 3))
    describe(folder, 2, {"background": 0, "a": 1, "b": 2, "c": 3})
    cases = [{"case": n, "patient": n, "structures": list(text)} for n, text in zip(names, told, strict=True)]
    (folder / "provenance.json").write_text(json.dumps({"cases": cases}))
    made = prepare("nnunet", folder, tmp_path / "out")
    assert made.dataset.classes == dict(enumerate(classes, start=1))
    assert {case.name for cases in made.dataset.splits.values() for case in cases} == {names[place] for place in kept}
    for place in kept:
        expected = blocks(place + 1, (1, 2, 3))
        for index, name in made.dataset.classes.items():
            assert ((made.label(names[place]) == index) == (expected == "abc".index(name) + 1)).all()
    dropped = [name for name in "abc" if name not in classes]
    assert [sentence[0] for sentence in made.remarks("ignored")] == dropped


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": {"background": 0, "liver": -1}}, "must map names to whole values of 0 or more, got 'liver': -1"),
        ({"labels": {"background": 0, "liver": [0, 1]}}, "classes with different names to values above 0"),
        ({"labels": {"background": 0, "liver": None}}, "got 'liver': None"),
        ({"channel_names": ["CT"]}, 'expected "channel_names" or "modality" as {"0": "CT"}'),
        ({"dataset": {"a": ["x"]}}, 'expected "images" and "label" of a'),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    folder = tmp_path / "Dataset015_Wrong"
    add_cases(folder, NAMES[:1])
    describe(folder, 2, LABELS)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match="Dataset015_Wrong") as error:
        prepare("nnunet", folder, tmp_path / "out")
    assert sentence in str(error.value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    with pytest.raises(ValueError, match=r"is no raw data set of nnU-Net: expected dataset\.json beside imagesTr"):
        prepare("nnunet", tmp_path / "some", tmp_path / "out")
    decathlon = tmp_path / "Task09_Spleen"
    volume(decathlon / "imagesTr" / "spleen_2.nii.gz", noise(2))
    volume(decathlon / "labelsTr" / "spleen_2.nii.gz", blocks(2, (1,)))
    describe(decathlon, 1, {"background": 0, "spleen": 1})
    with pytest.raises(ValueError, match="folders of the Decathlon are read by `prepare msd`"):
        prepare("nnunet", decathlon, tmp_path / "out")
    for name in ("Dataset001_A", "Dataset002_B"):
        add_cases(tmp_path / "raw" / name, ["x"])
        describe(tmp_path / "raw" / name, 2, LABELS)
    with pytest.raises(ValueError, match="holds several data sets: Dataset001_A, Dataset002_B"):
        prepare("nnunet", tmp_path / "raw", tmp_path / "out")
