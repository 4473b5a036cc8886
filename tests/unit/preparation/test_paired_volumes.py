# SPDX-License-Identifier: Apache-2.0
"""BTCV, LiTS, KiTS19 and KiTS23: pairs by number wherever they lie, look-alikes, downloads that are not complete."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.unit.preparation.downloads import blocks, noise, prepare, volume

KITS_SHAPE = (4, 9, 8)  # slices, rows, columns
KITS_AFFINE = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])


# BTCV


def btcv(root: Path, image: str = "Training/img", label: str = "Training/label", test: str = "Testing/img") -> Path:
    for number in (1, 2, 3, 10, 21, 22, 39, 40):
        volume(root / image / f"img{number:04d}.nii.gz", noise(number))
        volume(root / label / f"label{number:04d}.nii.gz", blocks(number, range(1, 14)))
    volume(root / test / "img0061.nii.gz", noise(61))
    return root


@pytest.mark.parametrize(
    ("below", "folders"),
    [
        ("Abdomen/RawData", {}),
        ("RawData", {"test": "Test/img"}),
        ("", {"image": "imagesTr", "label": "labelsTr", "test": "imagesTs"}),
    ],
)
def test_btcv_in_all_its_folders(tmp_path: Path, below: str, folders: dict[str, str]) -> None:
    download = tmp_path / "download"
    btcv(download / below, **folders)
    registered = download / "Abdomen" / "RegData" / "Training-Training"
    volume(registered / "img" / "0001" / "img0002-0001.nii.gz", noise(7))
    volume(registered / "label" / "0001" / "img0002-0001.nii.gz", blocks(7, (1,)))
    volume(registered / "label" / "0001" / "label0002.nii.gz", blocks(7, (1,)))
    volume(download / "averaged-training-images" / "DET0000101_avg.nii.gz", noise(8))
    made = prepare("btcv_ct", download, tmp_path / "out")
    assert made.status == 0
    names = {f"btcv_{n:04d}" for n in (1, 2, 3, 10, 21, 22, 39, 40)}
    assert made.names("training") | made.names("validation") | made.names("test") == names
    assert (made.label("btcv_0021") == blocks(21, range(1, 14))).all()
    assert (made.image("btcv_0021") == noise(21)).all()
    assert [made.dataset.classes[index] for index in (10, 11, 12, 13)] == [
        *("portal vein and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland")
    ]
    assert [Path(path).name for path in made.remarks("unlabelled")] == ["img0061.nii.gz"]
    assert "averaged images, another set (1 files)" in made.remarks("ignored")[0]


def test_labels_of_gibson_are_refused(tmp_path: Path) -> None:
    btcv(tmp_path / "d")
    volume(tmp_path / "d" / "Training" / "label" / "label0001.nii.gz", blocks(1, (1, 11, 14)))
    with pytest.raises(ValueError, match=r"label0001\.nii\.gz holds the value 14: these are the labels of Gibson"):
        prepare("btcv_ct", tmp_path / "d", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("averaged-training-images/DET0000101_avg.nii.gz", "another set of the same Synapse project"),
        ("train_npz/case0005_slice000.npz", "prepared for TransUNet, whose values are numbered otherwise"),
        ("test_vol_h5/case0001.npy.h5", "prepared for TransUNet, whose values are numbered otherwise"),
        ("RegData/Training-Training/img/0001/img0002-0001.nii.gz", "expected RawData with Training/img/img0001.nii.gz"),
        ("Training/img/1234-Image.nii.gz", "expected RawData with Training/img/img0001.nii.gz"),
    ],
)
def test_look_alikes_of_btcv_are_refused(tmp_path: Path, name: str, sentence: str) -> None:
    path = tmp_path / "d" / name
    if name.endswith(".nii.gz"):
        volume(path, noise(1))
    else:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=sentence):
        prepare("btcv_ct", tmp_path / "d", tmp_path / "out")


# LiTS


def lits(folders: tuple[Path, Path, Path], suffix: str = ".nii") -> None:
    """Volumes of which 28 has no voxel size, and labels with the identity for their affine where they are odd."""
    for number in (0, 1, 2, 3, 10, 11, 12, 28, 53, 130):
        folder = folders[0] if number < 28 else folders[1]
        affine = np.eye(4) if number == 28 else np.diag([-0.8, -0.8, 2.5, 1])
        volume(folder / f"volume-{number}{suffix}", noise(number), affine)
        label = folder if folders[2] == folders[0] else folders[2]
        labels = blocks(number, (1, 2)).astype(np.float64 if number == 12 else np.uint8)
        volume(label / f"segmentation-{number}{suffix}", labels, np.eye(4) if number == 53 else affine)


@pytest.mark.parametrize(
    ("folders", "suffix"),
    [
        (("media/nas/01_Datasets/CT/LITS/Training Batch 1", "media/nas/01_Datasets/CT/LITS/Training Batch 2"), ".nii"),
        (("Training_Batch1", "Training_Batch2"), ".nii"),
        (("all", "all"), ".nii.gz"),
        (("volume_pt1", "volume_pt2", "segmentations"), ".nii"),
    ],
)
def test_lits_is_paired_by_number(tmp_path: Path, folders: tuple[str, ...], suffix: str) -> None:
    download = tmp_path / "download"
    first, second, labels = (download / name for name in (*folders, folders[0])[:3])
    lits((first, second, labels), suffix)
    volume(download / "LITS-Challenge-Test-Data" / f"test-volume-0{suffix}", noise(900))
    made = prepare("lits_ct", download, tmp_path / "out")
    assert made.status == 0
    for number in (1, 2, 10, 12, 28, 53, 130):
        assert (made.label(f"lits_{number:03d}") == blocks(number, (1, 2))).all()
        assert (made.image(f"lits_{number:03d}") == noise(number)).all()
    assert made.dataset.classes == {1: "liver", 2: "liver tumour"}
    label = nib.load(made.case("lits_053").label)
    assert np.allclose(label.affine, np.diag([-0.8, -0.8, 2.5, 1]))
    size, affine = made.remarks("note")
    assert f"volume-28{suffix} stores no voxel size" in size
    assert f"segmentation-53{suffix} has another affine than volume-53{suffix}" in affine
    assert [Path(path).name for path in made.remarks("unlabelled")] == [f"test-volume-0{suffix}"]


@pytest.mark.parametrize("kind", ["copy", "packed copy", "other label", "other image"])
def test_doubled_numbers_are_named(tmp_path: Path, kind: str) -> None:
    download = tmp_path / "download"
    lits((download / "a", download / "a", download / "a"))
    again = download / "b"
    again.mkdir()
    if kind == "copy":
        shutil.copy(download / "a" / "volume-12.nii", again)
    elif kind == "packed copy":
        (again / "volume-12.nii.gz").write_bytes(gzip.compress((download / "a" / "volume-12.nii").read_bytes()))
    elif kind == "other label":
        volume(again / "segmentation-12.nii", blocks(5, (1, 2)))
    else:
        volume(again / "volume-12.nii", noise(5))
    made = prepare("lits_ct", download, tmp_path / "out")
    (sentence,) = made.remarks("doubled")
    is_copy = kind in ("copy", "packed copy")
    assert sentence.endswith("are the same" if is_copy else "differ, so the case is left out")
    names = made.names("training") | made.names("validation") | made.names("test")
    assert ("lits_012" in names) == is_copy
    assert not made.remarks("missing")


def test_labels_and_volumes_without_each_other_are_named(tmp_path: Path) -> None:
    download = tmp_path / "download"
    lits((download, download, download))
    (download / "volume-2.nii").unlink()
    (download / "segmentation-10.nii").unlink()
    made = prepare("lits_ct", download, tmp_path / "out")
    assert made.remarks("missing") == [f"the image of {download / 'segmentation-2.nii'}"]
    assert made.remarks("unlabelled") == [str(download / "volume-10.nii")]


def test_the_decathlons_copy_of_lits_is_refused(tmp_path: Path) -> None:
    volume(tmp_path / "d" / "imagesTr" / "liver_12.nii.gz", noise(1))
    with pytest.raises(ValueError, match="is of the Decathlon's Task03_Liver"):
        prepare("lits_ct", tmp_path / "d", tmp_path / "out")


# KiTS


def kits_case(root: Path, number: int, *values: int, labelled: bool = True, image: bool = True) -> Path:
    folder = root / f"case_{number:05d}"
    if image:
        volume(folder / "imaging.nii.gz", noise(number, KITS_SHAPE).astype(np.float32), KITS_AFFINE)
    if labelled:
        volume(folder / "segmentation.nii.gz", blocks(number, values, KITS_SHAPE), KITS_AFFINE)
    return folder


def kits19(root: Path) -> Path:
    for number in (0, 1, 2, 60, 209):
        kits_case(root / "data", number, 1, 2)
    kits_case(root / "data", 210, labelled=False)
    (root / "data" / "kits.json").write_text(json.dumps([{"case_id": "case_00000"}]))
    return root


def kits23(root: Path) -> Path:
    for number in (0, 1, 210, 299, 400, 588):
        folder = kits_case(root / "dataset", number, 1, 2, 3)
        volume(folder / "instances" / "kidney_instance-1_annotation-1.nii.gz", blocks(3, (1,), KITS_SHAPE))
    (root / "dataset" / "kits23.json").write_text(json.dumps([{"case_id": "case_00000"}]))
    return root


def test_kits19_has_two_classes_and_slices_along_its_first_axis(tmp_path: Path) -> None:
    made = prepare("kits19_ct", kits19(tmp_path / "kits19"), tmp_path / "out")
    assert made.dataset.classes == {1: "kidney", 2: "kidney tumour"}
    assert (made.label("case_00209") == blocks(209, (1, 2), KITS_SHAPE)).all()
    assert (made.image("case_00209") == noise(209, KITS_SHAPE)).all()
    assert [Path(path).parent.name for path in made.remarks("unlabelled")] == ["case_00210"]
    records = [json.loads(line) for line in (tmp_path / "out" / "preparation.jsonl").read_text().splitlines()[1:]]
    assert {record["slices"] for record in records} == {4}
    assert {tuple(record["spacing"]) for record in records} == {(3.0, 0.8, 0.8)}


def test_kits23_has_cysts_and_a_gap_in_its_numbers(tmp_path: Path) -> None:
    made = prepare("kits23_ct", kits23(tmp_path / "kits23"), tmp_path / "out")
    assert made.dataset.classes == {1: "kidney", 2: "kidney tumour", 3: "kidney cyst"}
    names = made.names("training") | made.names("validation") | made.names("test")
    assert names == {f"case_{n:05d}" for n in (0, 1, 210, 299, 400, 588)}
    assert (made.label("case_00400") == blocks(400, (1, 2, 3), KITS_SHAPE)).all()
    assert not made.remarks("missing")


@pytest.mark.parametrize("kind", ["nothing", "half downloaded", "pointer of the image", "pointer of the label"])
@pytest.mark.parametrize("name", ["kits19_ct", "kits23_ct"])
def test_what_was_not_downloaded_is_missing(tmp_path: Path, name: str, kind: str) -> None:
    root = (kits19 if name == "kits19_ct" else kits23)(tmp_path / "kits")
    case = root / ("data" if name == "kits19_ct" else "dataset") / "case_00001"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 60000000\n"
    if kind == "pointer of the label":
        (case / "segmentation.nii.gz").write_bytes(pointer)
    elif kind == "pointer of the image":
        (case / "imaging.nii.gz").write_bytes(pointer)
    else:
        (case / "imaging.nii.gz").unlink()
    if kind == "half downloaded":
        (case / ".partial.imaging.nii.gz").write_bytes(b"\x1f\x8b")
    made = prepare(name, root, tmp_path / "out")
    (sentence,) = made.remarks("missing")
    assert "case_00001" in sentence and "images are not in the repository" in sentence
    assert ("is a pointer of git-lfs" in sentence) == kind.startswith("pointer")
    names = made.names("training") | made.names("validation") | made.names("test")
    assert made.status == 0 and "case_00000" in names and "case_00001" not in names


def test_a_clone_without_images_is_refused(tmp_path: Path) -> None:
    kits_case(tmp_path / "d", 0, 1, 2, image=False)
    with pytest.raises(ValueError, match=r"holds no labelled case.*case_00000.*get_imaging\.py downloads them"):
        prepare("kits19_ct", tmp_path / "d", tmp_path / "out")


@pytest.mark.parametrize("name", ["kits19_ct", "kits23_ct"])
def test_other_years_of_kits_are_refused(tmp_path: Path, name: str) -> None:
    root = (kits23 if name == "kits19_ct" else kits19)(tmp_path / "d")
    year = "KiTS23" if name == "kits19_ct" else "KiTS19"
    with pytest.raises(ValueError, match=f"is of {year}"):
        prepare(name, root, tmp_path / "out")
    volume(root / "case_00001" / "aggregated_MAJ_seg.nii.gz", blocks(1, (1,), KITS_SHAPE))
    with pytest.raises(ValueError, match="is of KiTS21"):
        prepare(name, root, tmp_path / "out")


def test_a_cyst_in_kits19_is_an_error(tmp_path: Path) -> None:
    root = kits19(tmp_path / "d")
    kits_case(root / "data", 1, 1, 2, 3)
    made = prepare("kits19_ct", root, tmp_path / "out")
    assert made.status == 1
    assert "holds the value 3, expected 0 or one of [1, 2]" in made.remarks("faulty")[0]
