# SPDX-License-Identifier: Apache-2.0
"""Names in DICOM, in every script: written as UTF-8 and whole, read back by other tools, with the voxels under them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom_seg
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset

from lib.dicom.seg_reader import read_seg, segment_names
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import describe_series
from lib.dicom.series_headers import SeriesHeaders
from lib.dicom.series_writer import dicom_series
from lib.dicom.text import identifier, label, whole
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from tests.unit import dicom_files
from tests.unit.dicom_arrivals import items_of

NAMES = {"肝臓": 1, "腫瘍 (左)": 2, "Leber äöü ß": 3, "печень": 4, "foie é": 5, "간": 6, "κύστη": 7}
LONG = {
    "longer than a label": "Karzinom im linken Leberlappen, " * 4 + "Rand",
    "65 characters": "肝" * 65,
    "a backslash": "left\\right",
    "1,024 characters": "x" * 1024,
}

SOURCES: list[tuple[str | list[str], str, str]] = [
    ("ISO_IR 100", "Müller^Jörg", "Schädel"),
    ("ISO_IR 101", "Dvořák^Jiří", "lebka ž"),
    ("ISO_IR 144", "Иванов^Пётр", "череп"),
    ("ISO_IR 192", "Ünal^山田", "頭蓋骨"),
    ("GB18030", "王^小东", "颅骨"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", "頭部"),
    (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", "두개골"),
]


def sent(images: list[Dataset]) -> list[Dataset]:
    """The images as they are in files."""
    return [dcmread(io.BytesIO(as_bytes(image))) for image in images]


def labels_of(names: dict[str, int], grid: tuple[int, int, int]) -> np.ndarray:
    """Each structure in voxels of its own."""
    return np.random.default_rng(0).choice(np.array([0, *names.values()], np.uint8), grid)


def written(images: list[Dataset], names: dict[str, int]) -> tuple[Dataset, np.ndarray]:
    """A segmentation as it is in a file, and its labels."""
    series = describe_series(images)
    labels = labels_of(names, series.grid)
    return dcmread(io.BytesIO(as_bytes(write_seg(labels, names, series, "K-Prism 肝臓", "Größe")))), labels


@pytest.mark.parametrize(("declared", "patient", "study"), SOURCES, ids=[str(source[0]) for source in SOURCES])
@pytest.mark.parametrize("by", ["files", "JSON"])
def test_the_patient_is_that_of_the_images(
    declared: str | list[str], patient: str, study: str, by: str, tmp_path: Path
) -> None:
    """Whatever set the images declare; `by` is how their headers come: from the instances, or as DICOM JSON."""
    images = dicom_files.volume()
    for image in images:
        image.SpecificCharacterSet, image.PatientName, image.StudyDescription = declared, patient, study
    images = sent(images)
    series = describe_series(images)
    if by == "JSON":
        headers = SeriesHeaders.of(items_of(images), len(images))
        headers.write(tmp_path)
        series, _ = headers.describe(tmp_path)
    segmentation = write_seg(labels_of(NAMES, series.grid), NAMES, series, "K-Prism")
    stored = dcmread(io.BytesIO(as_bytes(segmentation)))
    assert stored.SpecificCharacterSet == "ISO_IR 192"
    assert (str(stored.PatientName), stored.StudyDescription) == (patient, study)
    assert list(segment_names(stored).values()) == list(NAMES)
    assert "?" not in json.dumps(stored.to_json_dict(), ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "encoding"), [("Müller^Jörg", "latin-1"), ("Müller^Jörg", "utf-8"), ("山田^太郎", "utf-8")]
)
@pytest.mark.parametrize("declared", ["nothing", "an unknown set"])
def test_bytes_of_no_declared_set_are_recognised(name: str, encoding: str, declared: str) -> None:
    content = name.encode(encoding)
    content += b" " * (len(content) % 2)
    images = dicom_files.volume()
    for image in images:
        image.PatientName = "x" * len(content)
        image.SpecificCharacterSet = "ISO_IR 192"
    files = [as_bytes(image).replace(b"x" * len(content), content) for image in images]
    term = b"ISO_IR 999" if declared == "an unknown set" else b"          "
    images = [dcmread(io.BytesIO(file.replace(b"ISO_IR 192", term))) for file in files]
    stored, _ = written(images, NAMES)
    assert str(stored.PatientName) == name


def test_other_readers_find_the_same_names_and_voxels(tmp_path: Path) -> None:
    """highdicom, pydicom-seg and dcmqi."""
    images = dicom_files.volume()
    stored, labels = written(images, NAMES)
    stored.save_as(tmp_path / "seg.dcm", write_like_original=False)
    series = describe_series(images)

    by_highdicom = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [frame.instance for frame in series.frames]
    pixels = by_highdicom.get_pixels_by_source_instance(uids)
    for number, (name, value) in enumerate(NAMES.items(), 1):
        assert by_highdicom.get_segment_description(number).segment_label == name
        np.testing.assert_array_equal(pixels[..., number - 1].transpose(2, 1, 0), labels == value)

    by_pydicom_seg = pydicom_seg.MultiClassReader().read(stored)
    assert [by_pydicom_seg.segment_infos[number].SegmentLabel for number in range(1, 8)] == list(NAMES)
    np.testing.assert_array_equal(by_pydicom_seg.data.transpose(2, 1, 0), labels)

    found = by_dcmqi(tmp_path / "seg.dcm", tmp_path)
    assert list(found) == list(NAMES)
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, labels == NAMES[name])


def by_dcmqi(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """Name -> mask (column, row, slice), as 3D Slicer reads a segmentation."""
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [program, "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nrrd", "--prefix", "seg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    described = json.loads((folder / "seg-meta.json").read_text())["segmentAttributes"]
    return {
        segment["SegmentLabel"]: SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(folder / f"seg-{segment['labelID']}.nrrd"))
        ).transpose(2, 1, 0)
        > 0
        for group in described
        for segment in group
    }


@pytest.mark.parametrize("kind", LONG)
def test_a_name_that_no_label_can_hold_comes_back_whole(kind: str) -> None:
    names = {LONG[kind]: 1, LONG[kind][:1000] + " too": 2, "liver": 3}
    images = dicom_files.volume()
    stored, labels = written(images, names)
    read = read_seg(stored, describe_series(images))
    assert list(read.names) == list(names)
    np.testing.assert_array_equal(read.labels, labels)
    for item in stored.SegmentSequence:
        assert isinstance(item.SegmentLabel, str) and 1 <= len(item.SegmentLabel) <= 64
        meaning = item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning
        assert isinstance(meaning, str) and len(meaning) <= 64


@pytest.mark.parametrize("name", ["x" * 1025, "", " \n", "\\"])
def test_a_name_that_dicom_cannot_hold_is_refused(name: str) -> None:
    series = describe_series(dicom_files.volume())
    with pytest.raises(RequestError, match="DICOM SEG can hold 1 to 1024"):
        write_seg(np.ones(series.grid, np.uint8), {name: 1}, series, "K-Prism")


def test_a_description_that_is_another_text_is_no_name() -> None:
    assert whole("liver", "the liver of the patient") == "liver"
    assert whole("liver", "") == "liver"
    assert whole(label("x" * 80), "x" * 80) == "x" * 80
    assert whole(label("x" * 80), "y" * 80) == label("x" * 80)


@pytest.mark.parametrize(
    "names", [("a" * 64 + "b", "a" * 64 + "c"), ("肝" * 70, "肝" * 71), ("a\\b", "a b"), ("a=b", "a-b")]
)
def test_imported_images_of_different_names_are_different_patients(names: tuple[str, str]) -> None:
    patients = []
    for name in names:
        image = dicom_files.image_of(np.zeros((4, 3, 1), np.uint8) + len(name))
        [instance] = sent(list(dicom_series(image, name, "OT")))
        assert isinstance(instance.PatientID, str) and len(instance.PatientID) <= 64
        assert isinstance(instance.SeriesDescription, str) and instance.SeriesDescription == label(name)
        patients.append(instance.PatientID)
    assert len(set(patients)) == 2
    assert identifier("usual name ä") == "usual name ä"
