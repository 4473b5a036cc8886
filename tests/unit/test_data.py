# SPDX-License-Identifier: Apache-2.0
"""Reading data sets: what is right comes back whole, what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from kprism_model.data.datasets import load_case, load_scribble, read_dataset, read_picture, slice_counts
from tests.unit.dataset_files import rectangle, write_dataset, write_json

GOOD = {"name": "x", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "disc"}}


def test_a_picture_comes_back_as_stored(tmp_path: Path) -> None:
    label = rectangle((30, 50), slice(5, 15), slice(20, 40))
    dataset = read_dataset(write_dataset(tmp_path / "set", [label], patients=["p7"]))
    (case,) = dataset.cases("training")
    assert (dataset.name, dataset.modality, dict(dataset.classes)) == ("set", "photograph", {1: "disc"})
    assert (case.name, case.patient, case.is_volume, slice_counts(case)) == ("case_0", "p7", False, (1, 3))
    loaded = load_case(dataset, case)
    assert loaded.images.shape == (1, 30, 50, 3) and loaded.images.dtype == np.float32
    assert loaded.spacing is None and loaded.orientation is None
    np.testing.assert_array_equal(loaded.labels, label[None])
    np.testing.assert_array_equal(loaded.images[0, ..., 1], label.astype(np.float32))


def test_a_volume_is_cut_across_its_coarsest_axis(tmp_path: Path) -> None:
    label = np.zeros((12, 9, 4), np.uint8)
    label[2, 3, 1] = 2
    image = np.arange(label.size, dtype=np.int16).reshape(label.shape)
    affine = np.diag([1.0, 1.5, 6.0, 1.0])
    folder = write_dataset(tmp_path / "set", [label], images=[image], classes=["a", "b"], affine=affine)
    dataset = read_dataset(folder)
    (case,) = dataset.cases("training")
    loaded = load_case(dataset, case)
    assert case.name == case.patient == "case_0" and slice_counts(case) == (4, 1)
    assert loaded.images.shape == (4, 9, 12) and loaded.spacing == (6.0, 1.5, 1.0)
    assert loaded.labels is not None and loaded.orientation is not None
    assert np.argwhere(loaded.labels).tolist() == [[1, 9 - 1 - 3, 12 - 1 - 2]]
    np.testing.assert_array_equal(loaded.orientation.to_volume(loaded.labels), label)
    order = loaded.orientation.to_volume(loaded.images).ravel()
    assert (np.diff(order) >= 0).all() and order[0] == 0 and order[-1] == 1


@pytest.mark.parametrize(("mode", "shape"), [("RGBA", (8, 9, 3)), ("LA", (8, 9)), ("P", (8, 9, 3)), ("I;16", (8, 9))])
def test_pictures_of_many_modes_are_grey_or_rgb(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    Image.new(mode, (9, 8), 7 if mode in ("P", "I;16") else None).save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png").shape == shape


def test_the_decathlons_bare_test_entries_have_no_label(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [rectangle((8, 8), slice(2), slice(2))])
    write_json(folder, {**GOOD, "test": ["./images/case_0.png"]})
    dataset = read_dataset(folder)
    (case,) = dataset.cases("test")
    assert case.label is None and load_case(dataset, case).labels is None
    with pytest.raises(ValueError, match="unknown split 'tests'"):
        dataset.cases("tests")
    with pytest.raises(ValueError, match="case_0 has no scribbles"):
        load_scribble(case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": {"0": "T1", "1": "T2"}}, '"modality" must name one modality'),
        ({"labels": {"disc": 1}}, "must map 0..255 to names, got 'disc': 1"),
        ({"labels": {"0": "background", "1": "a", "2": "A"}}, "different names"),
        ({"labels": {}}, '"labels" must map label indices to names'),
        ({"training": {}}, '"training" must be a list, got dict'),
        ({"training": [{"label": "x.png"}]}, r'training\[0\] must be a path or an object with "image"'),
        ({"name": "../../elsewhere"}, "\"name\" must be the name of a folder, .* got '../../elsewhere'"),
        ({"name": "a/b"}, "got 'a/b'"),
        ({"name": "."}, "got '.'"),
        ({"name": "a\nb"}, r"got 'a\\nb'"),
        ({"training": ["missing.png"]}, r"training\[0\] image 'missing.png' does not exist"),
        ({"training": ["dataset.json"]}, r"training\[0\] image 'dataset.json' is neither NIfTI nor"),
    ],
)
def test_a_wrong_description_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_json(tmp_path, {**GOOD, **change})
    with pytest.raises(ValueError, match=message) as error:
        read_dataset(tmp_path)
    assert str(tmp_path / "dataset.json") in str(error.value)


def test_a_description_that_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.json does not exist"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_dataset(tmp_path)


def test_a_set_without_a_name_has_that_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path / "hips", [np.ones((8, 9), np.uint8)])
    content = json.loads((folder / "dataset.json").read_text())
    del content["name"]
    (folder / "dataset.json").write_text(json.dumps(content))
    monkeypatch.chdir(folder)
    assert (read_dataset(folder).name, read_dataset(Path()).name) == ("hips", "hips")


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [rectangle((8, 8), slice(2), slice(2))])
    write_json(folder, {**GOOD, "training": ["images/case_0.png"], "test": ["images/case_0.png"]})
    with pytest.raises(ValueError, match="more than once: case_0"):
        read_dataset(folder)


def test_wrong_pixels_are_named(tmp_path: Path) -> None:
    label = rectangle((8, 8), slice(2), slice(2), value=3)
    dataset = read_dataset(write_dataset(tmp_path / "value", [label]))
    with pytest.raises(ValueError, match=r"case_0.png holds label 3, expected 0 or one of \[1\]"):
        load_case(dataset, dataset.cases("training")[0])
    image = np.zeros((8, 9), np.uint8)
    dataset = read_dataset(write_dataset(tmp_path / "shape", [label], images=[image]))
    with pytest.raises(ValueError, match=r"case_0.png has shape \(8, 8\), but its image .* has \(8, 9\)"):
        load_case(dataset, dataset.cases("training")[0])
    (tmp_path / "shape" / "images" / "case_0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"case_0.png cannot be read as a picture"):
        load_case(dataset, dataset.cases("training")[0])


def test_wrong_volumes_are_named(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    folder = write_dataset(tmp_path / "set", [label], images=[np.zeros((4, 5, 7), np.float32)])
    dataset = read_dataset(folder)
    (case,) = dataset.cases("training")
    with pytest.raises(ValueError, match=r"labels/case_0.nii.gz has shape \(4, 5, 6\), but its image has \(4, 5, 7\)"):
        load_case(dataset, case)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), np.eye(4)), case.image)
    with pytest.raises(ValueError, match=r"images/case_0.nii.gz must be a volume of three axes"):
        load_case(dataset, case)
    case.image.write_bytes(b"no volume")
    with pytest.raises(ValueError, match=r"images/case_0.nii.gz cannot be read as NIfTI"):
        slice_counts(case)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("hippocampus_mr", (182, 26, 52)),
        ("busi_us", (202, 29, 57)),
        ("kvasir_polyp", (133, 19, 38)),
        ("acdc_mr", (76, 20, 40)),
        ("totalseg_ct", (0, 0, 1)),
    ],
)
def test_real_data_sets_are_read_whole(data: Path, name: str, counts: tuple[int, int, int]) -> None:
    dataset = read_dataset(data / name)
    assert tuple(len(dataset.cases(split)) for split in ("training", "validation", "test")) == counts
    case = dataset.cases("test")[0]
    loaded = load_case(dataset, case)
    assert loaded.labels is not None and loaded.labels.any()
    assert len(loaded.images) == slice_counts(case)[0]
    assert 0 <= loaded.images.min() < loaded.images.max() <= 1
    if case.scribble is not None:
        scribble = load_scribble(case)
        drawn = (scribble > 0) & (scribble < 4)
        assert np.mean(scribble[drawn] == loaded.labels[drawn]) > 0.9
