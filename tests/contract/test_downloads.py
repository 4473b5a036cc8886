# SPDX-License-Identifier: Apache-2.0
"""Labels of a folder of files as downloads: on the grid of the file, with their names; no DICOM without headers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK
from PIL import Image

from benchmarks.live_server import LiveServer
from kprism_model.volumes.slice_map import SliceMap
from lib.api.ohif.planes import pack
from lib.imaging.medical_image import planes_of

NAMES = {"腫瘍": 2, "lung, left": 7}


def grid_of(path: Path) -> tuple[int, int, int]:
    """Columns, rows and slices of a study."""
    if path.suffix in (".png", ".jpg"):
        return (*Image.open(path).size, 1)
    shape = nibabel.load(path).shape
    return shape[0], shape[1], shape[2]


def drawn(grid: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(5).choice(np.array([0, 0, 2, 7], np.uint8), grid)


def download(server: LiveServer, image: str, form: str, labels: np.ndarray) -> requests.Response:
    """What is drawn, as the panel asks for it."""
    planes = SliceMap.of(labels, planes_of(labels.shape))
    return requests.post(
        f"{server.url}/kprism/api/case/{image}/download",
        params={"format": form},
        data=pack({"names": NAMES}, planes, planes.filled),
        timeout=60,
    )


@pytest.mark.parametrize(
    "study", ["brain_LPS.nii.gz", "brain_ASR.nii.gz", "oblique.nii.gz", "one_slice.nii.gz", "grey.png", "colour.jpg"]
)
def test_what_is_drawn_comes_on_the_grid_of_the_file(server: LiveServer, study: str, tmp_path: Path) -> None:
    path, image = server.studies / study, study.split(".")[0]
    labels = drawn(grid_of(path))
    answer = download(server, image, "nifti", labels)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Disposition"].endswith(f"filename*=UTF-8''{image}_label.nii.gz")
    nifti = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    np.testing.assert_array_equal(np.asarray(nifti.dataobj).reshape(labels.shape), labels)
    assert json.loads(nifti.header.extensions[-1].get_content()) == {"label_names": NAMES}
    (tmp_path / "label.seg.nrrd").write_bytes(download(server, image, "nrrd", labels).content)
    slicer = SimpleITK.ReadImage(str(tmp_path / "label.seg.nrrd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(slicer).T, labels)
    names = {slicer.GetMetaData(f"Segment{n}_Name"): int(slicer.GetMetaData(f"Segment{n}_LabelValue")) for n in (0, 1)}
    assert names == NAMES
    if path.suffix == ".gz":
        np.testing.assert_allclose(nifti.affine, nibabel.load(path).affine, atol=1e-5)
        place = SimpleITK.ReadImage(str(path))
        for voxel in ((0, 0, 0), (5, 4, 0)):
            found = slicer.TransformIndexToPhysicalPoint(voxel)
            np.testing.assert_allclose(found, place.TransformIndexToPhysicalPoint(voxel), atol=1e-3)


@pytest.mark.parametrize("form", ["seg", "rtstruct"])
@pytest.mark.parametrize("study", ["brain_RAS.nii.gz", "grey.png"])
def test_files_without_dicom_headers_are_refused_as_dicom(server: LiveServer, form: str, study: str) -> None:
    image = study.split(".")[0]
    answer = download(server, image, form, drawn(grid_of(server.studies / study)))
    assert answer.status_code == 400
    assert answer.json()["detail"] == (
        f"image '{image}' is a file without DICOM headers (patient, study, references), which format '{form}' needs; "
        "expected nifti or nrrd, or a DICOM series (./kprism import makes one)"
    )


def test_the_stored_label_is_named_by_hand_where_it_names_nothing(server: LiveServer) -> None:
    address = f"{server.url}/kprism/api/case/brain_LPS/download"
    answer = requests.get(address, params={"format": "nifti"}, timeout=60)
    assert answer.status_code == 200, answer.text
    nifti = nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))
    truth = nibabel.load(server.studies / "labels" / "final" / "brain_LPS.nii.gz")
    np.testing.assert_array_equal(np.asarray(nifti.dataobj), np.asarray(truth.dataobj))
    np.testing.assert_allclose(nifti.affine, truth.affine, atol=1e-5)
    assert json.loads(nifti.header.extensions[-1].get_content())["label_names"] == {"tumour": 1}
    for image, status in (("brain_RAS", 404), ("nowhere", 404), ("mislabelled", 400)):
        assert (
            requests.get(address.replace("brain_LPS", image), params={"format": "nifti"}, timeout=60).status_code
            == status
        )


def test_a_dicom_file_is_no_label_of_a_file(server: LiveServer) -> None:
    content = b"\0" * 128 + b"DICM" + b"\0" * 200
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": "brain_ASR", "tag": "final"},
        files={"label": ("label.dcm", content)},
        timeout=60,
    )
    assert answer.status_code == 400
    assert "is a DICOM file, but the image is a file without DICOM headers" in answer.json()["detail"]
