# SPDX-License-Identifier: Apache-2.0
"""DICOM files of a folder in a store, also in that of `./kprism viewer`: as they were, each once, of every kind."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import requests
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from lib.dicom.web import DicomWeb
from tests.e2e import dicom_folders as made
from tests.e2e.store.orthanc_site import Site
from tools.import_folder import main
from tools.viewer import _fill

SYNTAXES = {"implicit": ImplicitVRLittleEndian, "rle": RLELossless, "j2k": JPEG2000Lossless, "deflated": made.DEFLATED}


def in_store(site: Site, images: list[Dataset]) -> dict[str, bytes]:
    """SOP instance -> file in the store, of a series."""
    web = DicomWeb.at(site.orthanc.url)
    study, series = str(images[0].StudyInstanceUID), str(images[0].SeriesInstanceUID)
    names = web.instances(study, series) if web.find(series) else set()
    return {name: web.instance_file(study, series, name) for name in names}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder with three series, a SEG and a report, nested and without suffixes."""
    return tmp_path / "studies"


def test_every_object_arrives_as_it_is_and_once(site: Site, studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = {name: made.compressed(made.series(f"import {name}"), syntax) for name, syntax in SYNTAXES.items()}
    for name, images in series.items():
        made.write(images, studies / name / "deep", made.hashed)
    made.write(series["rle"], studies / "again", made.hashed)
    seg = made.segmentation(made.series("import seg"), {"ball": made.ball()})
    report = made.report(series["rle"])
    made.write([seg, report], studies, lambda number: f"other{number}")
    (studies / "cut.dcm").write_bytes((studies / "again" / made.hashed(0)).read_bytes()[:-300])
    (studies / "viewer.exe").write_bytes(b"MZ")
    arguments = [str(studies), "--to", site.orthanc.url]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "Imported 42 DICOM instances into" in said.out
    assert "left out: cut.dcm is truncated: at least" in said.err
    assert "1 other files in" in said.err
    for name, images in series.items():
        written = [path.read_bytes() for path in (studies / name / "deep").iterdir()]
        expected = {hashlib.sha256(content).hexdigest() for content in written}
        stored = in_store(site, images)
        assert stored.keys() == {str(image.SOPInstanceUID) for image in images}
        assert {hashlib.sha256(content).hexdigest() for content in stored.values()} == expected, name
    [(_, content)] = in_store(site, [seg]).items()
    np.testing.assert_array_equal(dcmread(io.BytesIO(content)).pixel_array, seg.pixel_array)
    assert len(in_store(site, [report])) == 1
    (studies / "cut.dcm").unlink()
    new = made.series("import new")
    made.write(new, studies / "new")
    assert main(arguments) == 0
    assert "Imported 10 DICOM instances; 42 were there already into" in capsys.readouterr().out
    assert len(in_store(site, new)) == 10


def test_files_without_a_header_are_completed(site: Site, studies: Path) -> None:
    images = made.series("import bare")
    made.write_bare(images, studies)
    assert main([str(studies), "--to", site.orthanc.url]) == 0
    stored = in_store(site, images)
    for image in images:
        got = dcmread(io.BytesIO(stored[str(image.SOPInstanceUID)]))
        np.testing.assert_array_equal(got.pixel_array, image.pixel_array)
        assert got.PatientID == "import bare"


@pytest.mark.parametrize("kind", ["file", "disc", "jpegls"])
def test_single_files_and_discs(kind: str, site: Site, studies: Path) -> None:
    images = made.series(f"import {kind}", made.body() + 1024, PixelRepresentation=0)
    if kind == "disc":
        made.write_disc(images, studies)
        arguments = [str(studies)]
    elif kind == "jpegls":
        made.write(made.compressed(images, JPEGLSLossless), studies)
        arguments = [str(studies)]
    else:
        made.write(images, studies)
        arguments = [str(path) for path in sorted(studies.iterdir())[:2]]
        images = images[:2]
    assert main([*arguments, "--to", site.orthanc.url]) == 0
    assert in_store(site, images).keys() == {str(image.SOPInstanceUID) for image in images}


def test_dicom_files_go_into_a_folder_too(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = made.series("to a folder")
    made.write(images, studies / "deep er", made.hashed)
    assert main([str(studies), "--to", str(tmp_path / "out")]) == 0
    place = tmp_path / "out" / str(images[0].SeriesInstanceUID)
    for number, image in enumerate(images):
        before = (studies / "deep er" / made.hashed(number)).read_bytes()
        assert (place / f"{image.SOPInstanceUID}.dcm").read_bytes() == before
    assert main([str(studies), "--to", str(tmp_path / "out")]) == 0
    assert "Imported 0 DICOM instances; 10 were there already" in capsys.readouterr().out


def test_a_folder_with_nothing_says_what_was_found(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies.mkdir()
    (studies / "x.dcm").write_text("nothing")
    (studies / "readme").write_text("nothing")
    assert main([str(studies), "--to", "http://127.0.0.1:9/dicom-web"]) == 1
    said = capsys.readouterr().err
    assert "has no images; expected files of type .nii.gz" in said
    assert "or DICOM files in it or in its subfolders (x.dcm is no DICOM file, though its name is that of one)" in said


def test_the_viewer_fills_its_store_with_what_is_new(
    site: Site, studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = made.series("viewer first"), made.series("viewer second")
    made.write(first, studies / "a")
    _fill(DicomWeb.at(site.orthanc.url), studies)
    assert "Imported 10 DICOM instances." in capsys.readouterr().err
    made.write(second, studies / "b")
    shutil.copy(studies / "a" / "IM000000", studies / "again.dcm")
    _fill(DicomWeb.at(site.orthanc.url), studies)
    assert "Imported 10 DICOM instances; 10 were there already." in capsys.readouterr().err
    assert len(in_store(site, first)) == len(in_store(site, second)) == 10


def test_a_store_that_is_off_and_one_behind_the_server(
    site: Site, studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write(made.series("proxied"), studies)
    assert main([str(studies), "--to", "http://127.0.0.1:9/dicom-web"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main([str(studies), "--to", f"{site.server.url}/kprism/dicom-web"]) == 0
    assert requests.get(f"{site.server.url}/kprism/dicom-web/studies?PatientID=proxied", timeout=60).json()
