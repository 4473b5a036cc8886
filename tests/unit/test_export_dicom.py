# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM, alone and with other files, as a data set: volumes on their grids, and nobody is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from lib.dataset_export import snapshot
from lib.dicom import dicom_folder
from lib.dicom.dicom_folder import DicomFolder
from lib.dicom.dicom_folder_store import DicomFolderStore
from lib.dicom.volumes import save_volume
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import SubmissionStore
from tests.e2e import dicom_folders as made
from tests.unit import dicom_files
from tests.unit.export_sites import OBLIQUE, Exporter, all_text, blocks, ct, tree

PHASES = (12, 10, 4)


@pytest.fixture
def exporter(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Exporter:
    """The command; nothing changes here, so no file has to be quiet first."""
    monkeypatch.setattr(dicom_folder, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(dicom_folder, "SCAN_SECONDS", 0.0)
    monkeypatch.setattr(dicom_folder, "SCAN_PAUSE", 0.0)
    monkeypatch.setattr(snapshot, "SETTLED_SECONDS", 0.0)
    return Exporter(capsys)


def written(studies: Path, name: str, seed: int, **more: Any) -> list[Any]:
    """A CT series of a patient `name`."""
    images = made.series(name, made.body(seed), **more)
    made.write(images, studies / f"{name}{seed}")
    return images


def segmented(studies: Path, images: list[Any], masks: Mapping[str, np.ndarray]) -> None:
    """A SEG of another tool, beside the images."""
    made.write(
        [made.segmentation(images, dict(masks))], studies / "seg", lambda _: f"{images[0].SeriesInstanceUID}.dcm"
    )


def submitted(studies: Path, image_id: str, labels: np.ndarray, names: Mapping[str, int]) -> None:
    """Submit a label (column, row, slice) as the server does."""
    state = studies / ".kprism"
    store = DicomFolderStore(DicomFolder(studies, without=[state]), state / "dicom")
    path = studies.parent / f"{image_id}.nii.gz"
    save_volume(labels, store.open_series(image_id).affine, path)
    service = SubmissionService(SubmissionStore(state / "intake"), store, LabelRegistry())
    assert service.submit(image_id, path, {"label_names": dict(names)}, by="Dr. Anna") is not None


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_series_are_volumes_where_they_were_and_patients_are_numbers(exporter: Exporter, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    series = [written(studies, name, seed) for seed, name in enumerate(("Mueller", "Mueller", "Schmidt"))]
    for images in series[:2]:
        segmented(studies, images, {"liver": made.ball()})
    segmented(studies, series[2], {"vessel": ~made.ball() & (made.body() > 0), "liver": made.ball()})
    before = tree(studies)
    assert exporter.run(studies, "nnunet", tmp_path / "out") == 0
    assert tree(studies) == before
    folder = tmp_path / "out" / "Dataset501_KPrism"
    assert read_json(folder / "dataset.json")["channel_names"] == {"0": "CT"}
    found = read_json(folder / "provenance.json")
    order = sorted(range(3), key=lambda number: str(series[number][0].SeriesInstanceUID))
    owners = {case["case"]: case["patient"] for case in found["cases"]}
    names = {number: f"case_{place:04}" for place, number in enumerate(order, 1)}
    assert owners[names[0]] == owners[names[1]] != owners[names[2]]
    place = np.array([[-1, 0, 0, 30], [0, -1, 0, 20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
    for number, case in names.items():
        image = nibabel.load(folder / "imagesTr" / f"{case}_0000.nii.gz")
        label = nibabel.load(folder / "labelsTr" / f"{case}.nii.gz")
        np.testing.assert_array_equal(image.affine, place)
        np.testing.assert_array_equal(label.affine, place)
        np.testing.assert_array_equal(np.asarray(image.dataobj), made.body(number))
        np.testing.assert_array_equal(np.asarray(label.dataobj) == 1, made.ball())
    assert {case["way"] for case in found["cases"]} == {"found in the datastore"}
    assert found["source"] == "a folder of DICOM files"
    text = all_text(tmp_path / "out") + (exporter.said + exporter.errors).encode()
    uids = [str(images[0][name].value) for images in series for name in ("SeriesInstanceUID", "StudyInstanceUID")]
    assert not [word for word in ("Mueller", "Schmidt", *uids) if word.encode() in text]


def test_identifiers_are_kept_only_where_asked(exporter: Exporter, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    images = written(studies, "Mueller", 0)
    uid = str(images[0].SeriesInstanceUID)
    submitted(studies, uid, made.ball().astype(np.uint8), {"liver": 1})
    before = tree(studies)
    assert exporter.run(studies, "msd", tmp_path / "out", "--keep-identifiers") == 0
    assert tree(studies) == before
    folder = tmp_path / "out" / "Task51_KPrism"
    with (folder / "identifiers.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["case_0001", uid, "Mueller", "Dr. Anna"]
    [case] = read_json(folder / "provenance.json")["cases"]
    assert (case["image"], case["way"]) == (uid, "submitted to the server")
    label = nibabel.load(folder / "labelsTr" / "case_0001.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), made.ball())
    assert read_json(folder / "dataset.json")["validation"] == []
    assert "all cases are of one patient, so there are no folds" in exporter.errors


def test_other_files_beside_dicom_and_kinds_apart(exporter: Exporter, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    images = written(studies, "Mueller", 0)
    segmented(studies, images, {"liver": made.ball()})
    dose = written(studies, "Schmidt", 1, RescaleType="US", RescaleSlope="1", RescaleIntercept="0")
    segmented(studies, dose, {"liver": made.ball()})
    [xray] = dicom_files.picture("CR", name="xray")
    made.write([xray], studies / "xray")
    nibabel.save(nibabel.Nifti1Image(ct(3), OBLIQUE), studies / "plain.nii.gz")
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(blocks(1), OBLIQUE), final / "plain.nii.gz")
    (studies / "labels.json").write_text(json.dumps({"labels": {"1": "liver"}}))
    seen = np.zeros((13, 9, 1), np.uint8)
    seen[2:6, 3:8] = 1
    submitted(studies, str(xray.SeriesInstanceUID), seen, {"lung": 1})
    assert exporter.run(studies, "nnunet", tmp_path / "out") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "Dataset501_KPrismXRayPictures",
        "Dataset502_KPrismCT",
        "Dataset503_KPrismCTWithoutHounsfieldUnits",
    ]
    pixels = np.asarray(Image.open(out / "Dataset501_KPrismXRayPictures" / "imagesTr" / "case_0001_0000.png"))
    np.testing.assert_array_equal(pixels, xray.pixel_array)
    label = np.asarray(Image.open(out / "Dataset501_KPrismXRayPictures" / "labelsTr" / "case_0001.png"))
    np.testing.assert_array_equal(label, seen[:, :, 0].T)
    assert read_json(out / "Dataset502_KPrismCT" / "dataset.json")["numTraining"] == 2
    cases = read_json(out / "Dataset502_KPrismCT" / "provenance.json")["cases"]
    assert [case.get("image") for case in cases].count("plain") == 1
    assert [case.get("image") for case in cases].count(None) == 1


def test_each_labelled_phase_of_a_series_is_a_case(exporter: Exporter, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    images = dicom_files.phases(PHASES, "TemporalPositionIdentifier", ["1", "2", "3"], "heart")
    for image in images:
        image.PixelData = (image.pixel_array + 100 * int(image.TemporalPositionIdentifier)).astype(np.uint16).tobytes()
    made.write(images, studies / "cine")
    uid = str(images[0].SeriesInstanceUID)
    labels = np.zeros((*PHASES[:2], 3 * PHASES[2]), np.uint8)
    labels[2:6, 2:7, 1:3], labels[3:8, 2:7, 9:11] = 1, 1
    submitted(studies, uid, labels, {"left ventricle": 1})
    assert exporter.run(studies, "nnunet", tmp_path / "out") == 0
    folder = tmp_path / "out" / "Dataset501_KPrism"
    found = read_json(folder / "provenance.json")["cases"]
    assert [(case["volume"], case["patient"]) for case in found] == [(1, 1), (3, 1)]
    values = []
    for number, first in enumerate((0, 8), 1):
        label = nibabel.load(folder / "labelsTr" / f"case_{number:04}.nii.gz")
        np.testing.assert_array_equal(np.asarray(label.dataobj), labels[:, :, first : first + 4])
        values.append(np.asarray(nibabel.load(folder / "imagesTr" / f"case_{number:04}_0000.nii.gz").dataobj))
        assert values[-1].shape == PHASES
    np.testing.assert_allclose(values[1] - values[0].astype(float), 200, atol=1)
