# SPDX-License-Identifier: Apache-2.0
"""OAI-ZIB: masks without a pose, images as DICOM series or NIfTI files in any orientation, official folds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tests.unit.preparation.downloads import Prepared, blocks, noise, prepare, volume

SHAPE = (6, 9, 8)  # of masks, along the patient's left, posterior and superior
SPACING = (0.7, 0.36, 0.37)
CLASSES = {1: "femur", 2: "femoral cartilage", 3: "tibia", 4: "tibial cartilage"}


def image_values(number: int) -> NDArray[np.int16]:
    """Along the axes of the mask."""
    return np.abs(noise(number, SHAPE))


def mask_values(number: int) -> NDArray[np.uint8]:
    return blocks(number, (1, 2, 3, 4), SHAPE)


def mask(folder: Path, number: int, values: NDArray[np.uint8] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored = SimpleITK.GetImageFromArray((mask_values(number) if values is None else values).transpose(2, 1, 0))
    SimpleITK.WriteImage(stored, str(folder / f"{number}.segmentation_masks.mhd"))


def oai_path(number: int) -> str:
    return f"0.C.2/{number}/20041101/{number + 1000000}"


def download(root: Path, numbers: Sequence[int], *, test: Sequence[int] = (), below: str = "segmentation") -> Path:
    doc = root / below / "doc"
    doc.mkdir(parents=True)
    for number in (*numbers, *test):
        mask(root / below / "segmentation_masks", number)
    lines = [f"{number}: {oai_path(number)}" for number in (*numbers, *test)]
    (doc / "oai_mri_paths.txt").write_text("\n".join(lines) + "\n")
    (doc / "2foldCrossValidation-List1.txt").write_text("\n".join(map(str, numbers)) + "\n")
    (doc / "2foldCrossValidation-List2.txt").write_text("\n".join(map(str, test)) + "\n")
    return root


def series(folder: Path, number: int, *, from_the_right: bool = True, leave_out: int | None = None) -> None:
    """A sagittal DICOM series: rows run to the feet, columns to the back; files are numbered from right or left."""
    folder.mkdir(parents=True)
    values, uid = image_values(number), generate_uid()
    order = range(SHAPE[0]) if from_the_right else reversed(range(SHAPE[0]))
    for place, x in enumerate(order):
        if place == leave_out:
            continue
        instance = pydicom.Dataset()
        instance.file_meta = FileMetaDataset()
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID = MRImageStorage
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID = generate_uid()
        instance.SeriesInstanceUID, instance.Modality, instance.InstanceNumber = uid, "MR", place + 1
        instance.PatientID = str(number)
        instance.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        instance.ImagePositionPatient = [10 + x * SPACING[0], -20, 30]
        instance.PixelSpacing = [SPACING[2], SPACING[1]]
        instance.SliceThickness = SPACING[0]
        pixels = values[x].T[::-1]  # (z, y), from the head to the feet
        instance.Rows, instance.Columns = pixels.shape
        instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
        instance.BitsAllocated, instance.BitsStored, instance.HighBit, instance.PixelRepresentation = 16, 12, 11, 0
        instance.PixelData = np.ascontiguousarray(pixels).astype("<u2").tobytes()
        instance.is_little_endian, instance.is_implicit_VR = True, False
        instance.save_as(folder / f"{place + 1:03d}", write_like_original=False)


def nifti(path: Path, number: int, axes: str) -> None:
    """The image with its axes running to `axes`."""
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(axes))
    values = nib.orientations.apply_orientation(image_values(number), turn)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1]) @ inv_ornt_aff(turn, SHAPE)
    volume(path, values, affine)


def along_the_mask(path: Path | None) -> NDArray[np.generic]:
    """The values of a prepared file along the patient's left, posterior and superior."""
    assert path is not None
    canonical = nib.as_closest_canonical(nib.load(path))
    return np.asarray(canonical.dataobj)[::-1, ::-1]


def check(made: Prepared, number: int) -> None:
    case = made.case(f"oai_{number}")
    assert (along_the_mask(case.image) == image_values(number)).all()
    assert (along_the_mask(case.label) == mask_values(number)).all()
    image, label = nib.load(case.image), nib.load(case.label)
    assert np.allclose(image.affine, label.affine, atol=1e-4)


@pytest.mark.parametrize("below", ["results/00m", "00m", "."])
@pytest.mark.parametrize("from_the_right", [True, False])
def test_dicom_series_and_masks_lie_on_each_other(tmp_path: Path, below: str, from_the_right: bool) -> None:
    masks = download(tmp_path / "zib", [9001104, 9001105], test=[9001106])
    for number in (9001104, 9001105, 9001106):
        series(tmp_path / "oai" / below / oai_path(number), number, from_the_right=from_the_right)
    made = prepare("oai_zib_mr", masks, tmp_path / "out", "--images", str(tmp_path / "oai"))
    assert made.status == 0
    assert made.dataset.classes == CLASSES
    assert made.names("test") == {"oai_9001106"}
    assert made.names("training") | made.names("validation") == {"oai_9001104", "oai_9001105"}
    for number in (9001104, 9001105, 9001106):
        check(made, number)
    image = nib.load(made.case("oai_9001104").image)
    assert np.allclose(image.header.get_zooms(), (SPACING[1], SPACING[2], SPACING[0]), atol=1e-4)
    assert (tmp_path / "out" / "overview.png").is_file()


@pytest.mark.parametrize(
    ("names", "axes"),
    [("{}.nii.gz", "LPS"), ("{}_0000.nii.gz", "PIL"), ("{}/image.nii.gz", "RAS"), ("{}.nii", "PIR")],
)
def test_nifti_images_of_any_orientation(tmp_path: Path, names: str, axes: str) -> None:
    masks = download(tmp_path / "zib", [9001104], test=[9001105], below="OAI-ZIB")
    for number in (9001104, 9001105):
        nifti(tmp_path / "images" / names.format(number), number, axes)
    made = prepare("oai_zib_mr", masks, tmp_path / "out", "--images", str(tmp_path / "images"))
    assert made.status == 0
    check(made, 9001104)
    check(made, 9001105)


@pytest.mark.parametrize("folder", ["0_before", "z_after", "segmentation_masks/again"])
def test_two_masks_of_one_number_are_told_apart(tmp_path: Path, folder: str) -> None:
    masks = download(tmp_path / "zib", [9001104], test=[9001105])
    for number in (9001104, 9001105):
        nifti(tmp_path / "images" / f"{number}.nii.gz", number, "LPS")
    second = masks / "segmentation" / folder
    mask(second, 9001104)
    made = prepare("oai_zib_mr", masks, tmp_path / "copy", "--images", str(tmp_path / "images"))
    assert made.status == 0 and "is a copy of" in made.remarks("doubled")[0]
    check(made, 9001104)
    mask(second, 9001104, mask_values(7))
    made = prepare("oai_zib_mr", masks, tmp_path / "out", "--images", str(tmp_path / "images"))
    assert made.status == 1 and "so the case is left out" in made.remarks("faulty")[0]
    assert [len(made.names(split)) for split in ("training", "test")] == [0, 1]
    check(made, 9001105)


def test_without_images_it_says_which_are_needed(tmp_path: Path) -> None:
    masks = download(tmp_path / "zib", [9001104, 9001105])
    with pytest.raises(ValueError, match=r"expected --images FOLDER .* 2 knees.* 0\.C\.2/9001104/20041101/10001104"):
        prepare("oai_zib_mr", masks, tmp_path / "out")
    with pytest.raises(ValueError, match="is not a folder; expected the OAI's results/00m"):
        prepare("oai_zib_mr", masks, tmp_path / "out", "--images", str(tmp_path / "none"))
    assert not (tmp_path / "out").exists()


def test_missing_images_voxels_and_lists_are_named(tmp_path: Path) -> None:
    masks = download(tmp_path / "zib", [9001104, 9001105, 9001106])
    doc = masks / "segmentation" / "doc"
    for path in doc.glob("2fold*"):
        path.unlink()
    with (doc / "oai_mri_paths.txt").open("a") as file:
        file.write("9001107: 0.C.2/9009999/20041101/10001107\n")
    (masks / "segmentation" / "segmentation_masks" / "9001106.segmentation_masks.raw").unlink()
    nifti(tmp_path / "images" / "9001104.nii.gz", 9001104, "LPS")
    made = prepare("oai_zib_mr", masks, tmp_path / "out", "--images", str(tmp_path / "images"))
    raw, lists, image = made.remarks("missing")
    assert raw.endswith("9001106.segmentation_masks.raw, the voxels of 9001106.segmentation_masks.mhd")
    assert lists.startswith("the lists of the two folds")
    assert f"expected {oai_path(9001105)} in {tmp_path / 'images'}" in image
    assert "names the path of another number" in made.remarks("faulty")[0]


@pytest.mark.parametrize("fault", ["cut off", "value", "shape", "slice missing", "two series", "no DICOM"])
def test_faulty_cases_are_named(tmp_path: Path, fault: str) -> None:
    masks = download(tmp_path / "zib", [9001104, 9001105])
    folder = masks / "segmentation" / "segmentation_masks"
    place = tmp_path / "oai" / oai_path(9001105)
    series(tmp_path / "oai" / oai_path(9001104), 9001104)
    series(place, 9001105, leave_out=3 if fault == "slice missing" else None)
    sentences = {
        "cut off": "9001105.segmentation_masks.raw is damaged or cut off",
        "value": "holds the value 5, expected 0 or one of [1, 2, 3, 4]",
        "shape": "has the shape (9, 8, 5) along the axes of its image, but the image (9, 8, 6)",
        "slice missing": "has slices at uneven distances: some of the series are missing",
        "two series": "holds 2 DICOM series, expected one",
        "no DICOM": "holds 0 DICOM series, expected one",
    }
    if fault == "cut off":
        path = folder / "9001105.segmentation_masks.raw"
        path.write_bytes(path.read_bytes()[:-40])
    elif fault == "value":
        mask(folder, 9001105, blocks(1, (1, 5), SHAPE))
    elif fault == "shape":
        mask(folder, 9001105, blocks(1, (1, 4), (5, 9, 8)))
    elif fault == "two series":
        series(tmp_path / "more", 9001106)
        for path in (tmp_path / "more").iterdir():
            path.rename(place / f"{path.name}b")
    elif fault == "no DICOM":
        for path in place.iterdir():
            path.write_bytes(b"text")
    made = prepare("oai_zib_mr", masks, tmp_path / "out", "--images", str(tmp_path / "oai"))
    assert made.status == 1
    assert sentences[fault] in made.remarks("faulty")[0]
    assert made.names("training") | made.names("validation") | made.names("test") == {"oai_9001104"}


@pytest.mark.parametrize("kind", ["beside", "alone", "given"])
def test_masks_of_the_classification_are_never_read(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "zib"
    if kind == "beside":
        download(root, [9001104])
    mask(root / "classification" / "segmentation_masks", 9008561)
    nifti(tmp_path / "images" / "9001104.nii.gz", 9001104, "LPS")
    nifti(tmp_path / "images" / "9008561.nii.gz", 9008561, "LPS")
    given = root / "classification" if kind == "given" else root
    if kind == "beside":
        made = prepare("oai_zib_mr", given, tmp_path / "out", "--images", str(tmp_path / "images"))
        assert made.names("training") == {"oai_9001104"}
        assert made.remarks("ignored")[0].startswith("2 files of the classification experiment")
    else:
        with pytest.raises(ValueError, match="the masks of the classification experiment"):
            prepare("oai_zib_mr", given, tmp_path / "out", "--images", str(tmp_path / "images"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("imagesTr/oaizib_001_0000.nii.gz", "is OAIZIB-CM, another set"), ("a.nii.gz", "is not OAI-ZIB: expected")],
)
def test_other_downloads_are_refused(tmp_path: Path, name: str, sentence: str) -> None:
    volume(tmp_path / "d" / name, noise(1))
    with pytest.raises(ValueError, match=sentence):
        prepare("oai_zib_mr", tmp_path / "d", tmp_path / "out")


def test_it_says_that_simpleitk_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = download(tmp_path / "zib", [9001104])
    nifti(tmp_path / "images" / "9001104.nii.gz", 9001104, "LPS")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ValueError, match="which is not installed; expected: pip install SimpleITK"):
        prepare("oai_zib_mr", masks, tmp_path / "out", "--images", str(tmp_path / "images"))
    assert not (tmp_path / "out").exists()
