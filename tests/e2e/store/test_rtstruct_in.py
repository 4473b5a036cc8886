# SPDX-License-Identifier: Apache-2.0
"""RT structure sets that other tools store, or users upload, count as submitted labels."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.series import describe_series
from lib.dicom.web import as_bytes
from tests.e2e.site import wait
from tests.e2e.store import foreign
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import assert_same, expected_planes
from tests.unit import dicom_files
from tests.unit.rtstructs import Drawn, box
from tests.unit.rtstructs import foreign as structure_set

SHAPE = (36, 28, 5)

PARTS = {"肝臓": (slice(3, 20), slice(4, 18)), "腫瘍": (slice(8, 12), slice(9, 13))}
"""Columns and rows of a structure, and of one inside it."""


@dataclass(frozen=True)
class Placed:
    """Images in the store, their id, and a structure set that was stored for them."""

    images: list[Dataset]
    image: str
    series: str


def contours() -> dict[str, list[Drawn]]:
    """Both structures on the second and third slice."""
    corners = {
        name: box(columns.start - 0.5, rows.start - 0.5, columns.stop - 0.5, rows.stop - 0.5)
        for name, (columns, rows) in PARTS.items()
    }
    return {name: [(corners[name], k) for k in (1, 2)] for name in PARTS}


def drawn(images: list[Dataset]) -> dict[tuple[str, str, int], NDArray[np.bool_]]:
    """The masks that the contours are, by name and image."""
    frames = describe_series(images).frames
    outer, inner = (np.zeros((images[0].Rows, images[0].Columns), bool) for _ in range(2))
    for mask, (columns, rows) in zip((outer, inner), PARTS.values(), strict=True):
        mask[rows, columns] = True
    masks = {"肝臓": outer & ~inner, "腫瘍": inner}
    return {(name, frames[k].instance, frames[k].number): mask for name, mask in masks.items() for k in (1, 2)}


@pytest.fixture(scope="module")
def stored(site: Site) -> dict[str, Placed]:
    """A structure set that names its series, one that names images only, and one that names neither."""
    found = {}
    for way in ("series", "images", "frame of reference"):
        images = dicom_files.volume("CT", SHAPE, f"rt by {way}")
        image = site.put(images)
        structures = structure_set(describe_series(images), contours(), references=way != "frame of reference")
        if way == "series":
            place, study, whole = Dataset(), Dataset(), Dataset()
            whole.SeriesInstanceUID = image
            study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
            study.ReferencedSOPInstanceUID = images[0].StudyInstanceUID
            study.RTReferencedSeriesSequence = [whole]
            place.FrameOfReferenceUID = images[0].FrameOfReferenceUID
            place.RTReferencedStudySequence = [study]
            structures.ReferencedFrameOfReferenceSequence = [place]
        found[way] = Placed(images, image, site.put([structures]))
    return found


@pytest.mark.parametrize("way", ["series", "images", "frame of reference"])
def test_a_structure_set_counts_within_seconds(way: str, site: Site, stored: dict[str, Placed]) -> None:
    case = stored[way]
    wait(lambda: site.submission(case.image) is not None, site.server)
    mask, names = site.label(case.image)
    assert list(names) == list(PARTS)
    assert_same(expected_planes(mask, names, case.images), drawn(case.images))
    assert site.label_series(case.image) == case.series


def test_what_is_left_out_is_told_when_the_case_is_opened(site: Site, stored: dict[str, Placed]) -> None:
    case = stored["series"]
    wait(lambda: site.submission(case.image) is not None, site.server)
    label = site.get(f"/kprism/api/case/{case.image}").json()["label"]
    assert label["notes"] == [
        f"'肝臓' is without {2 * 4 * 4} voxels that are also in '腫瘍': the smaller structure has them."
    ]


def test_the_newest_of_both_kinds_counts(site: Site) -> None:
    images = dicom_files.volume("MR", SHAPE, "rt in turns")
    image, series = site.put(images), describe_series(images)
    first = site.put([structure_set(series, contours(), references=True)])
    wait(lambda: site.submission(image) is not None and site.label_series(image) == first, site.server)
    plane = np.zeros((images[0].Rows, images[0].Columns), bool)
    plane[5:9, 6:11] = True
    segmentation = site.put([foreign.by_ohif(images, {"zyst": {(series.frames[3].instance, 1): plane}})])
    wait(lambda: site.label_series(image) == segmentation, site.server)
    assert list(site.label(image)[1]) == ["zyst"]
    last = site.put([structure_set(series, contours(), references=True)])
    wait(lambda: site.label_series(image) == last, site.server)
    assert list(site.label(image)[1]) == list(PARTS)
    site.delete(last)
    wait(lambda: site.label_series(image) == segmentation, site.server)


def test_one_that_cannot_be_used_is_told_on_the_panel(site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, "rt beside")
    image, series = site.put(images), describe_series(images)
    structures = structure_set(series, {"far": [(box(500, 500, 520, 520), 2)]}, references=True)
    structures.SeriesDescription = "Plan 7"
    site.put([structures])

    def told() -> list[str]:
        return [entry["reason"] for entry in site.get("/kprism/api/status").json()["cases"]["refused"]]

    site.get(f"/kprism/api/case/{image}")
    wait(lambda: any("Plan 7" in reason for reason in told()), site.server)
    [reason] = [reason for reason in told() if "Plan 7" in reason]
    assert reason == (
        f"structure set 'Plan 7' cannot be used: the structure set has no closed contour on the images of series "
        f"{image}. Of 'far', 1 contour is cut at the border of the images."
    )
    assert site.submission(image) is None


@pytest.mark.parametrize("kind", ["RTSTRUCT", "SEG"])
def test_a_dicom_file_is_uploaded_as_a_label(kind: str, site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, f"uploaded {kind}")
    image, series = site.put(images), describe_series(images)
    expected = drawn(images)
    if kind == "RTSTRUCT":
        uploaded = structure_set(series, contours(), references=True)
    else:
        masks: foreign.Drawn = {name: {} for name in PARTS}
        for (name, instance, frame), mask in expected.items():
            masks[name][instance, frame] = mask
        uploaded = foreign.by_ohif(images, masks)
    answer = upload(site, image, as_bytes(uploaded))
    assert answer.status_code == 200, answer.text
    mask, names = site.label(image)
    assert_same(expected_planes(mask, names, images), expected)
    [submitted] = site.segmentations(image)  # as any label that is submitted here
    assert [str(item.SegmentLabel) for item in submitted.SegmentSequence] == list(PARTS)


def test_dicom_files_that_are_no_labels_of_the_case_are_refused(site: Site) -> None:
    images, others = (dicom_files.volume("CT", SHAPE, f"refused {name}") for name in ("one", "two"))
    image = site.put(images)
    site.put(others)
    whole = as_bytes(structure_set(describe_series(images), contours()))
    for content, sentence in (
        (as_bytes(images[0]), "is a DICOM object of type CT Image Storage; expected a segmentation or an RT structure"),
        (as_bytes(structure_set(describe_series(others), {"nothing": []})), "no closed contour on the images"),
        (whole[:300], "is a DICOM object of type unknown"),
        (whole[: len(whole) * 9 // 10], "damaged"),
    ):
        answer = upload(site, image, content)
        assert answer.status_code == 400 and sentence in answer.json()["detail"], answer.text
        assert f"the label of image '{image}'" in answer.json()["detail"]
    assert site.submission(image) is None


def upload(site: Site, image: str, content: bytes) -> requests.Response:
    """PUT a DICOM file as the label of an image."""
    return requests.put(
        f"{site.server.url}/datastore/label",
        params={"image": image, "tag": "final"},
        data={"params": json.dumps({"client_id": "anna"})},
        files={"label": ("label.dcm", io.BytesIO(content))},
        timeout=120,
    )
