# SPDX-License-Identifier: Apache-2.0
"""A folder of studies as a data set of nnU-Net and of the Decathlon: voxels, names, patients, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from kprism_model.data.building import build_store
from kprism_model.data.datasets import load_case, read_dataset
from lib.dataset_export import snapshot
from tests.unit.export_sites import (
    GRID,
    OBLIQUE,
    SHEARED,
    Exporter,
    FolderSite,
    all_text,
    blocks,
    ct,
    tree,
    write_itk,
    write_nrrd,
)
from tests.unit.seg_nrrd_files import write_seg_nrrd

LIVER_SPLEEN = {"liver": 1, "spleen": 2}


@pytest.fixture
def exporter(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Exporter:
    """The command; it does not wait for labels of this moment, which nobody changes here."""
    monkeypatch.setattr(snapshot, "SETTLED_SECONDS", 0.0)
    return Exporter(capsys)


@pytest.fixture
def site(tmp_path: Path) -> FolderSite:
    """Six CT volumes of three patients; the last names its structures in another order and letter case."""
    site = FolderSite(tmp_path / "studies")
    for number in range(5):
        name = f"p{number // 2}_scan{number}"
        site.volume(name, ct(number), blocks(1, 2), LIVER_SPLEEN)
    site.volume("p2_scan5", ct(5), blocks(3, 7), {"SPLEEN": 3, "Liver": 7})
    return site


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_volumes_keep_values_places_and_names(site: FolderSite, exporter: Exporter, tmp_path: Path) -> None:
    before = tree(site.studies)
    assert exporter.run(site.studies, "nnunet", tmp_path / "out", "--name", "Abdomen", "--id", "77") == 0
    assert tree(site.studies) == before
    folder = tmp_path / "out" / "Dataset077_Abdomen"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [folder.name]
    described = read_json(folder / "dataset.json")
    assert described["channel_names"] == {"0": "CT"}
    assert list(described["labels"].items()) == [("background", 0), ("liver", 1), ("spleen", 2)]
    assert (described["numTraining"], described["file_ending"]) == (6, ".nii.gz")
    assert "overwrite_image_reader_writer" not in described
    assert described["codes"]["liver"]["type"] == {"value": "10200004", "scheme": "SCT", "meaning": "liver"}
    for number in range(6):
        image = nibabel.load(folder / "imagesTr" / f"case_{number + 1:04}_0000.nii.gz")
        label = nibabel.load(folder / "labelsTr" / f"case_{number + 1:04}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), ct(number))
        expected = blocks(1, 2) if number < 5 else np.select([blocks(3, 7) == 7, blocks(3, 7) == 3], [1, 2])
        np.testing.assert_array_equal(np.asarray(label.dataobj), expected)
        np.testing.assert_array_equal(image.affine, OBLIQUE.astype(np.float32))
        np.testing.assert_array_equal(label.affine, image.affine)
        itk = [SimpleITK.ReadImage(str(path.get_filename())) for path in (image, label)]
        assert itk[0].GetDirection() == itk[1].GetDirection() and itk[0].GetOrigin() == itk[1].GetOrigin()
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk[0]).T, ct(number))
    assert b"Mueller" not in all_text(tmp_path / "out")


def test_who_when_and_what_is_written_down(site: FolderSite, exporter: Exporter, tmp_path: Path) -> None:
    pattern = ("--conf", "patients", r"^p\d")
    assert exporter.run(site.studies, "nnunet", tmp_path / "out", *pattern, "--keep-identifiers") == 0
    assert "the pattern of --conf patients for 6" in exporter.errors
    folder = tmp_path / "out" / "Dataset501_KPrism"
    found = read_json(folder / "provenance.json")
    assert [case["patient"] for case in found["cases"]] == [1, 1, 2, 2, 3, 3]
    assert found["patients"] == {"number": 3, "known by": {"pattern": 6}}
    assert [case["image"] for case in found["cases"]] == [f"p{n // 2}_scan{n}" for n in range(6)]
    assert {case["way"] for case in found["cases"]} == {"submitted to the server"}
    assert all(case["submitted"].endswith("+00:00") for case in found["cases"])
    assert len({case["image_sha256"] for case in found["cases"]}) == 6
    assert len({case["label_sha256"] for case in found["cases"]}) == 2
    assert found["classes"][1] | {"category": 0, "type": 0} == {
        "value": 2,
        "name": "spleen",
        "cases": 6,
        "category": 0,
        "type": 0,
    }
    with (folder / "identifiers.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["case", "image", "patient", "submitted by"]
    assert rows[3] == ["case_0003", "p1_scan2", "p1", "anna"]


def test_folds_keep_patients_together_and_are_those_of_the_seed(
    site: FolderSite, exporter: Exporter, tmp_path: Path
) -> None:
    for number in range(6, 16):
        site.volume(f"p{number // 2}_scan{number}", ct(number), blocks(1), {"liver": 1})
    pattern = ("--conf", "patients", r"^p\d")
    splits = []
    for out, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        assert exporter.run(site.studies, "nnunet", tmp_path / out, *pattern, "--seed", seed) == 0
        splits.append(read_json(tmp_path / out / "Dataset501_KPrism" / "splits_final.json"))
    assert splits[0] == splits[1] != splits[2]
    cases = [f"case_{number:04}" for number in range(1, 17)]
    owners = {
        case["case"]: case["patient"]
        for case in read_json(tmp_path / "one" / "Dataset501_KPrism" / "provenance.json")["cases"]
    }
    for fold in splits[0]:
        assert sorted(fold["train"] + fold["val"]) == cases
        assert not {owners[name] for name in fold["train"]} & {owners[name] for name in fold["val"]}
        assert 2 <= len(fold["val"]) <= 4
    assert sorted(name for fold in splits[0] for name in fold["val"]) == cases
    assert len(splits[0]) == 5


def test_one_image_under_two_names_stays_in_one_fold(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    for number in range(4):
        site.volume(f"scan{number}", ct(number % 3), blocks(1), {"liver": 1})
    assert exporter.run(site.studies, "nnunet", tmp_path / "out", "--folds", "3") == 0
    found = read_json(tmp_path / "out" / "Dataset501_KPrism" / "provenance.json")["cases"]
    assert [case["patient"] for case in found] == [1, 2, 3, 1]


def test_every_type_of_volume_is_written_on_its_own_grid(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    labels, values = blocks(1, 2), {}
    values["nrrd"] = np.random.default_rng(1).normal(0, 1, GRID).astype(np.float32)
    write_nrrd(site.studies / "nrrd.nrrd", values["nrrd"], OBLIQUE)
    values["mha"] = np.random.default_rng(2).integers(0, 60000, GRID).astype(np.uint16)
    write_itk(site.studies / "mha.mha", values["mha"], OBLIQUE)
    stored = np.random.default_rng(3).integers(-900, 900, GRID).astype(np.int16)
    scaled = nibabel.Nifti1Image(stored, np.diag([-1.0, 1.0, 4.0, 1.0]))
    scaled.header.set_slope_inter(2, 100)
    nibabel.save(scaled, site.studies / "scaled.nii")
    values["scaled"] = np.asarray(nibabel.load(site.studies / "scaled.nii").dataobj)
    for name in ("nrrd", "mha"):
        site.submit(name, site.sent(name, labels, OBLIQUE), LIVER_SPLEEN)
    flipped = np.diag([1.0, 1.0, 4.0, 1.0])
    flipped[0, 3] = -(GRID[0] - 1)
    site.submit(
        "scaled", site.sent("scaled", labels[::-1], flipped), LIVER_SPLEEN
    )  # the same place, counted from the other side
    assert exporter.run(site.studies, "nnunet", tmp_path / "out", "--modality", "MR") == 0
    folder = tmp_path / "out" / "Dataset501_KPrism"
    assert read_json(folder / "dataset.json")["channel_names"] == {"0": "MRI"}
    for number, name in enumerate(sorted(values), 1):
        image = nibabel.load(folder / "imagesTr" / f"case_{number:04}_0000.nii.gz")
        label = nibabel.load(folder / "labelsTr" / f"case_{number:04}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), values[name])
        np.testing.assert_array_equal(np.asarray(label.dataobj), labels)
        expected = np.diag([-1.0, 1.0, 4.0, 1.0]) if name == "scaled" else OBLIQUE
        np.testing.assert_allclose(image.affine, expected, atol=1e-5)
        np.testing.assert_array_equal(label.affine, image.affine)


def test_axes_that_are_not_at_right_angles_get_a_reader_that_takes_them(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    site.volume("tilted", ct(0), blocks(1), {"liver": 1}, SHEARED)
    site.volume("upright", ct(1), blocks(1), {"liver": 1})
    assert exporter.run(site.studies, "nnunet", tmp_path / "out") == 0
    folder = tmp_path / "out" / "Dataset501_KPrism"
    assert read_json(folder / "dataset.json")["overwrite_image_reader_writer"] == "NibabelIO"
    image = nibabel.load(folder / "imagesTr" / "case_0001_0000.nii.gz")
    np.testing.assert_allclose(image.affine, SHEARED, atol=1e-5)
    with pytest.raises(RuntimeError, match="orthonormal"):
        SimpleITK.ReadImage(str(folder / "imagesTr" / "case_0001_0000.nii.gz"))
    SimpleITK.ReadImage(str(folder / "imagesTr" / "case_0002_0000.nii.gz"))


def test_each_kind_of_image_is_a_data_set_of_its_own(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    rng, label = np.random.default_rng(0), blocks(1, 2, grid=(20, 16))
    pixels = {
        "colour": rng.integers(0, 255, (20, 16, 3)).astype(np.uint8),
        "deep": rng.integers(0, 65535, (20, 16)).astype(np.uint16),
        "grey": rng.integers(0, 255, (20, 16)).astype(np.uint8),
    }
    pixels["alike"] = np.repeat(rng.integers(0, 255, (20, 16, 1)).astype(np.uint8), 3, axis=2)
    for name, ending in (("colour", ".bmp"), ("deep", ".tif"), ("grey", ".png"), ("alike", ".png")):
        site.picture(name, pixels[name], label, LIVER_SPLEEN, ending)
    site.volume("ct", ct(0), blocks(1), {"liver": 1})
    other = np.random.default_rng(4).integers(0, 900, GRID).astype(np.int16)
    site.volume("other", other, blocks(1), {"heart": 1})
    assert exporter.run(site.studies, "nnunet", tmp_path / "out", "--id", "30") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "Dataset030_KPrismPicture",
        "Dataset031_KPrismPictureColour",
        "Dataset032_KPrismCT",
        "Dataset033_KPrismVolumes",
    ]
    colour = out / "Dataset031_KPrismPictureColour"
    described = read_json(colour / "dataset.json")
    assert described["channel_names"] == {"0": "R", "1": "G", "2": "B"} and described["file_ending"] == ".png"
    assert [path.name for path in (colour / "imagesTr").iterdir()] == ["case_0001_0000.png"]
    assert read_json(out / "Dataset032_KPrismCT" / "dataset.json")["channel_names"] == {"0": "CT"}
    assert read_json(out / "Dataset033_KPrismVolumes" / "dataset.json")["labels"] == {"background": 0, "heart": 1}
    grey = out / "Dataset030_KPrismPicture"
    expected = [pixels["alike"][..., 0], pixels["deep"], pixels["grey"]]
    for number, plane in enumerate(expected, 1):
        found = np.asarray(Image.open(grey / "imagesTr" / f"case_{number:04}_0000.png"))
        assert found.dtype == plane.dtype
        np.testing.assert_array_equal(found, plane)
        np.testing.assert_array_equal(np.asarray(Image.open(grey / "labelsTr" / f"case_{number:04}.png")), label)
    found = np.asarray(Image.open(colour / "imagesTr" / "case_0001_0000.png"))
    np.testing.assert_array_equal(found, pixels["colour"])


def test_real_numbers_and_colour_volumes_become_volumes(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    real = np.random.default_rng(0).normal(0, 1, (20, 16)).astype(np.float32)
    site.picture("real", real, blocks(1, grid=(20, 16)), {"liver": 1}, ".tif")
    colours = np.random.default_rng(1).integers(0, 255, (*GRID, 3)).astype(np.uint8)
    rgb = np.ascontiguousarray(colours).view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[..., 0]
    nibabel.save(nibabel.Nifti1Image(rgb, OBLIQUE), site.studies / "rgb.nii.gz")
    site.submit("rgb", site.sent("rgb", blocks(1), OBLIQUE), {"liver": 1})
    assert exporter.run(site.studies, "nnunet", tmp_path / "out") == 0
    image = nibabel.load(tmp_path / "out" / "Dataset501_KPrismVolumes" / "imagesTr" / "case_0001_0000.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0], real.T)
    for channel in range(3):
        path = tmp_path / "out" / "Dataset502_KPrismVolumesColour" / "imagesTr" / f"case_0001_{channel:04}.nii.gz"
        np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), colours[..., channel])
    assert exporter.run(site.studies, "msd", tmp_path / "msd") == 0
    assert "image 'rgb' is a volume in colour" in exporter.errors
    assert [path.name for path in (tmp_path / "msd").iterdir()] == ["Task51_KPrism"]


@pytest.mark.parametrize("kind", ["volumes", "grey pictures", "colour pictures"])
def test_our_own_training_reads_the_form_of_the_decathlon(kind: str, exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    rng = np.random.default_rng(0)
    images = {}
    for number in range(6):
        name = f"p{number // 2}_{number}"
        if kind == "volumes":
            images[name] = ct(number)
            site.volume(name, ct(number), blocks(1, 2), LIVER_SPLEEN)
        else:
            shape = (20, 16, 3) if kind == "colour pictures" else (20, 16)
            images[name] = rng.integers(0, 255, shape).astype(np.uint8)
            site.picture(name, images[name], blocks(1, 2, grid=(20, 16)), LIVER_SPLEEN, ".png")
    words = ("--conf", "patients", r"^p\d", "--name", "Own", "--folds", "3", "--id", "9")
    assert exporter.run(site.studies, "msd", tmp_path / "out", *words) == 0
    folder = tmp_path / "out" / "Task09_Own"
    described = read_json(folder / "dataset.json")
    assert described["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert (described["numTraining"], described["numTest"], described["test"]) == (6, 0, [])
    assert described["tensorImageSize"] == ("3D" if kind == "volumes" else "2D")
    assert (folder / "imagesTs").is_dir() and not list((folder / "imagesTs").iterdir())
    dataset = read_dataset(folder)
    patients = [{case.patient for case in dataset.cases(split)} for split in ("training", "validation")]
    assert [len(dataset.cases(split)) for split in ("training", "validation")] == [4, 2]
    assert not patients[0] & patients[1] and len(patients[0] | patients[1]) == 3
    for case in dataset.cases("training"):
        loaded = load_case(dataset, case)
        assert loaded.labels is not None and set(np.unique(loaded.labels)) == {0, 1, 2}
    held_out = read_json(folder / "splits_final.json")[0]["val"]
    assert sorted(case.name for case in dataset.cases("validation")) == held_out
    store = build_store([folder], tmp_path / "store", size=32, progress=False)
    assert store.class_names == ("liver", "spleen")
    assert len(store.sets[0]) == 4 * (6 if kind == "volumes" else 1)
    assert store.sets[0].pixels.sum(axis=0).min() > 0


def test_labels_that_tell_of_some_structures_only(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    site.volume("both", ct(0), blocks(1, 2), LIVER_SPLEEN)
    site.volume("liver", ct(1), blocks(5), {"liver": 5})
    site.volume("heart", ct(2), blocks(1, 2), {"heart": 1, "spleen": 2})

    def exported(out: str, *more: str) -> tuple[dict[str, int], dict[str, list[str]], list[np.ndarray]]:
        assert exporter.run(site.studies, "nnunet", tmp_path / out, *more) == 0
        folder = tmp_path / out / "Dataset501_KPrism"
        cases = {case["image"]: case["structures"] for case in read_json(folder / "provenance.json")["cases"]}
        labels = [np.asarray(nibabel.load(path).dataobj) for path in sorted((folder / "labelsTr").iterdir())]
        return read_json(folder / "dataset.json")["labels"], cases, labels

    names, cases, labels = exported("all")
    assert names == {"background": 0, "heart": 1, "liver": 2, "spleen": 3}
    assert cases == {"both": ["liver", "spleen"], "heart": ["heart", "spleen"], "liver": ["liver"]}
    assert "3 of 3 cases do not annotate all structures (heart in 1, liver in 2, spleen in 2)" in exporter.errors
    np.testing.assert_array_equal(labels[0], np.select([blocks(1, 2) == 1, blocks(1, 2) == 2], [2, 3]))
    np.testing.assert_array_equal(labels[2], np.where(blocks(5) == 5, 2, 0))
    names, cases, labels = exported("some", "--structures", "SPLEEN", "liver")
    assert names == {"background": 0, "liver": 1, "spleen": 2} and set(cases) == {"both", "liver", "heart"}
    np.testing.assert_array_equal(labels[1], np.where(blocks(1, 2) == 2, 2, 0))
    names, cases, _ = exported("complete", "--structures", "spleen", "liver", "--complete")
    assert names == {"background": 0, "liver": 1, "spleen": 2} and set(cases) == {"both"}
    assert "do not annotate" not in exporter.errors
    names, cases, _ = exported("one", "--structures", "heart")
    assert names == {"background": 0, "heart": 1} and set(cases) == {"heart"}
    assert exporter.run(site.studies, "nnunet", tmp_path / "none", "--complete") == 1
    assert "none of the 3 cases annotates all of the structures" in exporter.errors
    assert not (tmp_path / "none").exists()


def test_of_structures_that_overlap_the_smaller_is_on_top(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    nibabel.save(nibabel.Nifti1Image(ct(0), np.diag([-1.0, -1.0, 4.0, 1.0])), site.studies / "case.nii.gz")
    liver, tumour = np.zeros(GRID, np.uint8), np.zeros(GRID, np.uint8)
    liver[2:14, 3:12, 1:5], tumour[4:7, 4:7, 2:4] = 1, 1
    path = tmp_path / "sent" / "case.seg.nrrd"
    rows = [("liver", 1, 0), ("tumour", 1, 1)]
    write_seg_nrrd(path, np.stack([liver, tumour]), np.diag([-1.0, -1.0, 4.0, 1.0]), rows)
    site.submit("case", path, {})
    assert exporter.run(site.studies, "nnunet", tmp_path / "out") == 0
    folder = tmp_path / "out" / "Dataset501_KPrism"
    label = np.asarray(nibabel.load(folder / "labelsTr" / "case_0001.nii.gz").dataobj)
    np.testing.assert_array_equal(label, np.where(tumour == 1, 2, liver))
    [case] = read_json(folder / "provenance.json")["cases"]
    assert "'liver' and 'tumour' overlap in 18 of the 432 voxels" in case["warnings"][0]
    assert "the smaller structure is on top" in exporter.errors


def test_a_label_that_nobody_submitted_counts_and_one_that_cannot_be_used_is_named(
    site: FolderSite, exporter: Exporter, tmp_path: Path
) -> None:
    final = site.studies / "labels" / "final"
    for name in ("byhand", "nameless"):
        nibabel.save(nibabel.Nifti1Image(ct(9), OBLIQUE), site.studies / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(blocks(1), OBLIQUE), final / "byhand.nii.gz")
    nibabel.save(nibabel.Nifti1Image(blocks(4), OBLIQUE), final / "nameless.nii.gz")
    (site.studies / "labels.json").write_text(json.dumps({"labels": {"1": "Kidney"}}))
    before = tree(site.studies)
    assert exporter.run(site.studies, "nnunet", tmp_path / "out") == 0
    assert tree(site.studies) == before
    assert "left out: the label of image 'nameless': nothing names the value 4" in exporter.errors
    found = read_json(tmp_path / "out" / "Dataset501_KPrism" / "provenance.json")
    assert {case["image"]: case["way"] for case in found["cases"]}["byhand"] == "found in the datastore"
    assert [entry["name"] for entry in found["classes"]] == ["Kidney", "liver", "spleen"]
    assert len(found["cases"]) == 7


def test_a_data_set_that_is_there_is_never_changed(site: FolderSite, exporter: Exporter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert exporter.run(site.studies, "nnunet", out) == 0
    before = tree(out)
    assert exporter.run(site.studies, "nnunet", out) == 0
    assert "Unchanged: " in exporter.said and tree(out) == before
    assert exporter.run(site.studies, "nnunet", out, "--seed", "3") == 1
    assert f"{out / 'Dataset501_KPrism'} is there already and differs" in exporter.errors
    assert exporter.run(site.studies, "nnunet", out, "--name", "Other") == 1
    assert f"{out / 'Dataset501_KPrism'} has the number 501 already" in exporter.errors
    assert tree(out) == before and len(list(out.iterdir())) == 1
    site.volume("p9", ct(9), blocks(1), {"liver": 1})
    assert exporter.run(site.studies, "nnunet", out) == 1
    assert tree(out) == before and len(list(out.iterdir())) == 1


def test_splits_go_to_nnunet_unless_it_has_others(
    site: FolderSite, exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, splits = tmp_path / "out", tmp_path / "preprocessed" / "Dataset501_KPrism" / "splits_final.json"
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert exporter.run(site.studies, "nnunet", out) == 0
    assert f"cp {out}/Dataset501_KPrism/splits_final.json $nnUNet_preprocessed/Dataset501_KPrism/" in exporter.said
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert exporter.run(site.studies, "nnunet", out) == 0
    assert read_json(splits) == read_json(out / "Dataset501_KPrism" / "splits_final.json")
    assert "cp " not in exporter.said
    splits.write_text("[]")
    assert exporter.run(site.studies, "nnunet", tmp_path / "again") == 1
    assert f"{splits} holds other splits" in exporter.errors
    assert splits.read_text() == "[]" and not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--structures", "liver", "kidney"], "--structures 'kidney': no label has it; expected one of liver, spleen"),
        (["--name", "My_Data"], "--name 'My_Data': expected letters, digits and hyphens"),
        (["--name", "../up"], "--name '../up': expected letters"),
        (["--id", "1000"], "--id 1000: expected a number from 1 to 999"),
        (["--id", "0"], "--id 0: expected a number from 1"),
        (["--folds", "1"], "--folds 1: expected 2 or more"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
        (["--conf", "patients", "("], "--conf patients (: expected a regular expression"),
        (["--conf", "patient", "x"], "there is no setting 'patient'; perhaps patients is meant"),
        (["--format", "coco"], "invalid choice: 'coco'"),
        (["--studies", "/nowhere"], "--studies: there is no folder '/nowhere'"),
    ],
)
def test_wrong_options_end_with_a_sentence(words: list[str], sentence: str, exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    site.volume("a", ct(0), blocks(1, 2), LIVER_SPLEEN)
    assert exporter.run(site.studies, "nnunet", tmp_path / "out", *words) in (1, 2)
    assert sentence in exporter.errors
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_a_data_set_is_said(exporter: Exporter, tmp_path: Path) -> None:
    site = FolderSite(tmp_path / "studies")
    nibabel.save(nibabel.Nifti1Image(ct(0), OBLIQUE), site.studies / "a.nii.gz")
    assert exporter.run(site.studies, "nnunet", tmp_path / "out") == 1
    assert "there is no image with a submitted label that can be exported" in exporter.errors
    site.submit("a", site.sent("a", blocks(1, 2), OBLIQUE), {"ignore": 1, "liver": 2})
    assert exporter.run(site.studies, "nnunet", tmp_path / "out") == 1
    assert "a structure is called 'ignore'" in exporter.errors
    assert not (tmp_path / "out").exists()
    assert exporter.run(site.studies, "nnunet", tmp_path / "out", "--structures", "liver") == 0
    assert exporter.run(site.studies, "msd", tmp_path / "out") == 0
    inside = site.studies / "out"
    assert exporter.run(site.studies, "msd", inside) == 1
    assert "lies in the studies" in exporter.errors and not inside.exists()
    (tmp_path / "file").write_text("")
    assert exporter.run(site.studies, "msd", tmp_path / "file" / "out") == 1
    assert "expected a folder that can be written to" in exporter.errors
