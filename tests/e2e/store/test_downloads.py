# SPDX-License-Identifier: Apache-2.0
"""Labels of a DICOMweb store as files: read by highdicom, nibabel, SimpleITK and by their contours; voxel by voxel."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import highdicom
import nibabel
import numpy as np
import pytest
import requests
import SimpleITK
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from kprism_model.volumes.slice_map import SliceMap
from lib.api.ohif.planes import pack
from lib.dicom.rtstruct_reader import read_rtstruct
from lib.dicom.series import Series, describe_series
from lib.imaging.medical_image import planes_of
from tests.e2e.store.orthanc_site import Site
from tests.unit import dicom_files

SHAPE = (36, 28, 5)
NAMES = {"肝臓": 1, "Leber, groß": 4, "печень": 2}
READERS: dict[str, Callable[[bytes, Series, Path], dict[str, NDArray[np.bool_]]]] = {}


def reader(kind: str) -> Callable[[Callable[[bytes, Series, Path], dict[str, NDArray[np.bool_]]]], None]:
    """What reads a format: the masks (column, row, slice) by name."""

    def note(read: Callable[[bytes, Series, Path], dict[str, NDArray[np.bool_]]]) -> None:
        READERS[kind] = read

    return note


@reader("seg")
def by_highdicom(content: bytes, series: Series, folder: Path) -> dict[str, NDArray[np.bool_]]:
    segmentation = highdicom.seg.Segmentation.from_dataset(dcmread(io.BytesIO(content)))
    multi = len({frame.instance for frame in series.frames}) < len(series.frames)
    if multi:
        pixels = segmentation.get_pixels_by_source_frame(
            series.frames[0].instance,
            [frame.number for frame in series.frames],
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )
    else:
        pixels = segmentation.get_pixels_by_source_instance(
            [frame.instance for frame in series.frames],
            ignore_spatial_locations=True,
            assert_missing_frames_are_empty=True,
        )
    described = [segmentation.get_segment_description(number) for number in segmentation.segment_numbers]
    return {str(item.segment_label): pixels[..., row].T > 0 for row, item in enumerate(described)}


@reader("nifti")
def by_nibabel(content: bytes, series: Series, folder: Path) -> dict[str, NDArray[np.bool_]]:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    np.testing.assert_allclose(image.affine, series.affine, atol=1e-4)
    [extension] = [item for item in image.header.extensions if item.get_code() == 6]
    names = json.loads(extension.get_content())["label_names"]
    voxels = np.asarray(image.dataobj)
    return {name: voxels == value for name, value in names.items()}


@reader("nrrd")
def by_simpleitk(content: bytes, series: Series, folder: Path) -> dict[str, NDArray[np.bool_]]:
    path = folder / "label.seg.nrrd"
    path.write_bytes(content)
    image = SimpleITK.ReadImage(str(path))
    lps = np.diag([-1, -1, 1, 1]) @ series.affine
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((0, 0, 0)), lps[:3, 3], atol=1e-4)
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((3, 2, 1)), lps[:3] @ [3, 2, 1, 1], atol=1e-4)
    voxels = SimpleITK.GetArrayFromImage(image).T
    keys = [key for key in image.GetMetaDataKeys() if key.endswith("_Name")]
    values = {image.GetMetaData(key): int(image.GetMetaData(key[:-4] + "LabelValue")) for key in keys}
    return {name: voxels == value for name, value in values.items()}


@reader("rtstruct")
def by_contours(content: bytes, series: Series, folder: Path) -> dict[str, NDArray[np.bool_]]:
    """By our own reader, which tests/unit/test_rtstruct.py compares with another rasteriser."""
    back = read_rtstruct(dcmread(io.BytesIO(content)), series)
    assert back.notes == ()
    return {name: back.labels == value for name, value in back.names.items()}


def drawn(grid: tuple[int, int, int], seed: int = 1) -> NDArray[np.uint8]:
    """Voxels of the three structures, on all slices but one if there are several."""
    labels = np.random.default_rng(seed).choice(np.array([0, 0, 1, 2, 4], np.uint8), grid)
    if grid[2] > 1:
        labels[:, :, 1] = 0
    return labels


def message(labels: NDArray[np.uint8], names: dict[str, int]) -> bytes:
    """What the panel sends."""
    planes = SliceMap.of(labels, planes_of(labels.shape))
    return pack({"names": names}, planes, planes.filled)


def name_of(answer: requests.Response) -> str:
    """The file name, as a browser reads it."""
    disposition = answer.headers["Content-Disposition"]
    assert disposition.isascii() and disposition.startswith("attachment; filename=")
    return unquote(disposition.partition("filename*=UTF-8''")[2])


def assert_file(kind: str, answer: requests.Response, series: Series, labels: NDArray[np.uint8], folder: Path) -> None:
    """A download holds the labels under their names."""
    assert answer.status_code == 200, answer.text
    masks = READERS[kind](answer.content, series, folder)
    assert list(masks) == list(NAMES)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(masks[name], labels == value, err_msg=name)


KINDS: dict[str, Callable[[str], list[Dataset]]] = {
    "CT": lambda name: dicom_files.volume("CT", SHAPE, name),
    "MR, multi-frame": lambda name: dicom_files.enhanced(SHAPE, name),
    "US": lambda name: dicom_files.picture("US", shape=SHAPE[:2], name=name),
}
ENDS = {"seg": "_seg.dcm", "nifti": "_label.nii.gz", "nrrd": "_label.seg.nrrd", "rtstruct": "_rtstruct.dcm"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_downloaded_and_nothing_is_stored(kind: str, site: Site, tmp_path: Path) -> None:
    images = KINDS[kind](f"down {kind}")
    for image in images:
        image.SpecificCharacterSet, image.PatientID, image.SeriesDescription = "ISO_IR 192", "患者/1", 'T1 "groß"'
    image_id, series = site.put(images), describe_series(images)
    labels = drawn(series.grid)
    for form, end in ENDS.items():
        answer = requests.post(
            f"{site.server.url}/kprism/api/case/{image_id}/download",
            params={"format": form},
            data=message(labels, NAMES),
            timeout=120,
        )
        if form == "rtstruct" and not series.positioned:
            assert answer.status_code == 400 and "no position in the patient" in answer.json()["detail"]
            continue
        assert_file(form, answer, series, labels, tmp_path)
        assert name_of(answer) == f"患者_1_T1 _groß_{end}"
    assert site.segmentations(image_id) == []
    assert site.get(f"/kprism/api/case/{image_id}/download", format="seg").status_code == 404


@pytest.mark.parametrize("letter", ["a", "é", "山", "𠮷"])
def test_a_name_fits_into_a_file_system(letter: str, site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, f"down {letter}")
    for image in images:
        image.SpecificCharacterSet, image.PatientID, image.SeriesDescription = "ISO_IR 192", letter * 64, letter * 64
    image_id = site.put(images)
    answer = requests.post(
        f"{site.server.url}/kprism/api/case/{image_id}/download",
        params={"format": "nrrd"},
        data=message(drawn(describe_series(images).grid), NAMES),
        timeout=120,
    )
    name = name_of(answer)
    assert name.startswith(letter * 40) and name.endswith(ENDS["nrrd"])
    assert len(name.encode()) <= 255


def test_the_submitted_label_and_a_draft_are_downloaded(site: Site, tmp_path: Path) -> None:
    images = dicom_files.volume("MR", SHAPE, "down stored")
    image_id, series = site.put(images), describe_series(images)
    labels, draft = drawn(series.grid, 2), drawn(series.grid, 3)
    for tag, voxels in (("final", labels), ("original", draft)):
        stored = nibabel.Nifti1Image(voxels, series.affine).to_bytes()
        answer = requests.put(
            f"{site.server.url}/datastore/label",
            params={"image": image_id, "tag": tag},
            data={"params": json.dumps({"label_names": NAMES})},
            files={"label": ("label.nii.gz", gzip.compress(stored))},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
    for form in ENDS:
        answer = site.get(f"/kprism/api/case/{image_id}/download", format=form)
        assert_file(form, answer, series, labels, tmp_path)
        answer = site.get(f"/kprism/api/case/{image_id}/download", format=form, tag="original")
        assert_file(form, answer, series, draft, tmp_path)


def test_downloads_that_cannot_be_made_say_why(site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, "down refused")
    image_id, series = site.put(images), describe_series(images)
    address = f"{site.server.url}/kprism/api/case/{image_id}/download"
    some = drawn(series.grid)
    for form, content, sentence in (
        ("dicom", message(some, NAMES), "format is 'dicom'; expected one of seg, nifti, rtstruct, nrrd"),
        ("seg", message(np.zeros_like(some), NAMES), "is empty: there is nothing to download"),
        ("rtstruct", message(some, {"liver": 1}), "the value 2, which has no name"),
        ("nifti", message(some, {}), "names are {}"),
        ("nifti", b"no gzip", "not gzip"),
    ):
        answer = requests.post(address, params={"format": form}, data=content, timeout=60)
        assert answer.status_code == 400 and sentence in answer.json()["detail"], answer.text
    for missing, params in ((address, {"tag": "draft"}), (address.replace(image_id, "1.2.3"), {})):
        assert requests.get(missing, params=params, timeout=60).status_code == 404
