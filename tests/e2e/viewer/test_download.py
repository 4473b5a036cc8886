# SPDX-License-Identifier: Apache-2.0
"""The panel's *Download*: what is on the screen, not submitted, as the files that the browser saves."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from playwright.sync_api import expect
from pydicom import dcmread

from lib.dicom.rtstruct_reader import read_rtstruct
from lib.dicom.series import describe_series
from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import Site, name_of

PATIENT = "pyradiomics_brain2"
NAMES = ("腫瘍", "ventricle")


def saved(mode: Mode, form: str) -> tuple[str, bytes]:
    """Choose a format and press *Download*: the name and content of the file."""
    mode.page.get_by_label("Format of the file").select_option(form)
    with mode.page.expect_download() as download:
        mode.button("Download")
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def draw(mode: Mode) -> None:
    """Two structures with the brush, on two slices."""
    columns, rows, slices = mode.grid
    for name, k, shift in ((NAMES[0], slices // 2, 0), (NAMES[1], slices // 2 + 1, 20)):
        mode.name_structure(name)
        mode.show(k)
        mode.brush()
        mode.paint([(columns // 2 + shift, rows // 2, k), (columns // 2 + shift + 6, rows // 2 + 4, k)])


def assert_same(found: dict[str, NDArray[np.bool_]], shown: dict[str, NDArray[np.bool_]]) -> None:
    assert list(found) == list(NAMES)
    for name in NAMES:
        assert shown[name].any()
        np.testing.assert_array_equal(found[name], shown[name], err_msg=name)


def test_what_is_drawn_is_saved_in_each_format_and_stays_unsubmitted(mode: Mode, site: Site, tmp_path: Path) -> None:
    mode.open(PATIENT)
    study, image = site.series(PATIENT)
    series = describe_series(list(site.store.fetch(study, image)))
    before = site.segmentations(PATIENT)
    mode.button("Download")
    expect(mode.page.get_by_text("There is nothing to download yet").first).to_be_visible()
    draw(mode)
    shown = mode.masks()
    mode.page.get_by_label("Format of the file").scroll_into_view_if_needed()
    mode.shot("download")

    name, content = saved(mode, "seg")
    assert name.startswith(PATIENT) and name.endswith("_seg.dcm")
    segmentation = highdicom.seg.Segmentation.from_dataset(dcmread(io.BytesIO(content)))
    pixels = segmentation.get_pixels_by_source_instance(
        [frame.instance for frame in series.frames],
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    assert_same({name_of(segmentation, row + 1): pixels[..., row].T > 0 for row in range(len(NAMES))}, shown)

    name, content = saved(mode, "rtstruct")
    assert name.endswith("_rtstruct.dcm")
    read = read_rtstruct(dcmread(io.BytesIO(content)), series)
    assert_same({name: read.labels == value for name, value in read.names.items()}, shown)

    name, content = saved(mode, "nifti")
    assert name.endswith("_label.nii.gz")
    nifti = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    values = json.loads(nifti.header.extensions[-1].get_content())["label_names"]
    assert_same({name: np.asarray(nifti.dataobj) == value for name, value in values.items()}, shown)

    name, content = saved(mode, "nrrd")
    assert name.endswith("_label.seg.nrrd")
    (tmp_path / name).write_bytes(content)
    slicer = SimpleITK.ReadImage(str(tmp_path / name))
    voxels = SimpleITK.GetArrayFromImage(slicer).T
    values = {slicer.GetMetaData(f"Segment{n}_Name"): int(slicer.GetMetaData(f"Segment{n}_LabelValue")) for n in (0, 1)}
    assert_same({name: voxels == value for name, value in values.items()}, shown)

    assert site.segmentations(PATIENT) == before
    assert "not submitted" in mode.page.locator(".kp-foot").inner_text()
    for name in NAMES:
        np.testing.assert_array_equal(mode.mask(name), shown[name])
