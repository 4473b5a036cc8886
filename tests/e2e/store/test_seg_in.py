# SPDX-License-Identifier: Apache-2.0
"""Segmentations that other tools store count as submitted labels within seconds, and those deleted are forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from lib.dicom.seg_writer import write_seg
from tests.e2e.site import wait
from tests.e2e.store import foreign
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import assert_same, expected_planes, places
from tests.unit import dicom_files

SHAPE = (36, 28, 5)
NAMES = ("Leber (links) äöü 肝臓", "печень")
PLAIN_NAMES = ("Leber (links)", "zyst")
"""dcmqi writes no others."""

TOOLS: dict[str, Callable[[list[Dataset], foreign.Drawn, Path], Dataset]] = {
    "OHIF": lambda images, drawn, folder: foreign.by_ohif(images, drawn),
    "3D Slicer": foreign.by_slicer,
    "highdicom": lambda images, drawn, folder: foreign.by_highdicom(images, drawn),
}


def drawing(
    images: list[Dataset], shift: int = 0, names: tuple[str, str] = NAMES
) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """Two structures on different images, neither on the first."""
    order = [(uid, frame) for uid, frame, _ in places(images)]
    blank = np.zeros((images[0].Rows, images[0].Columns), bool)
    first, second = blank.copy(), blank.copy()
    first[3 + shift : 12 + shift, 5:20] = True
    second[15:22, 9 + shift : 30] = True
    return {names[0]: dict.fromkeys(order[1:3], first), names[1]: dict.fromkeys(order[2:4], second)}


def flat(drawn: foreign.Drawn) -> dict[tuple[str, str, int], np.ndarray]:
    return {(name, *key): mask for name, masks in drawn.items() for key, mask in masks.items()}


def submitted(site: Site, image: str, series: str) -> bool:
    """Whether a SEG counts as the image's label, by the index that the server keeps; asks the server nothing."""
    entry = site.submission(image)
    return entry is not None and site.label_series(image) == series


def assert_counts(site: Site, image: str, images: list[Dataset], drawn: foreign.Drawn) -> None:
    """The label is what was drawn, on the images that it was drawn on."""
    mask, names = site.label(image)
    assert list(names) == list(drawn)
    assert_same(expected_planes(mask, names, images), flat(drawn))


@dataclass(frozen=True)
class Stored:
    """A SEG in the store: its series, when it came, and what it should become."""

    image: str
    images: list[Dataset]
    series: str
    drawn: foreign.Drawn
    at: float


@pytest.fixture(scope="module")
def stored(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stored]:
    """A SEG by every tool, one of a film without places, and one whose structures overlap; all come at once."""

    def put(images: list[Dataset], tool: str, drawn: foreign.Drawn, expected: foreign.Drawn) -> Stored:
        image = site.put(images)
        segmentation = TOOLS[tool](images, drawn, tmp_path_factory.mktemp("seg"))
        return Stored(image, images, site.put([segmentation]), expected, time.monotonic())

    found = {}
    for tool in TOOLS:
        images = dicom_files.volume("CT", SHAPE, f"in {tool}")
        drawn = drawing(images, names=PLAIN_NAMES if tool == "3D Slicer" else NAMES)
        found[tool] = put(images, tool, drawn, drawn)
    thick = dicom_files.volume("CT", SHAPE, "in thick slices")
    for slice_ in thick:
        slice_.SliceThickness = 2 * float(slice_.SliceThickness)
        slice_.pop("SpacingBetweenSlices", None)
    found["slices that overlap"] = put(thick, "highdicom", drawing(thick), drawing(thick))
    film = dicom_files.cine(shape=SHAPE[:2], name="in film")
    found["film"] = put(film, "OHIF", drawing(film), drawing(film))
    images = dicom_files.volume("CT", SHAPE, "in overlap")
    drawn, shared = drawing(images), places(images)[2][:2]
    both = drawn[NAMES[0]][shared] | drawn[NAMES[1]][shared]
    overlapping = {NAMES[0]: {**drawn[NAMES[0]], shared: both}, NAMES[1]: drawn[NAMES[1]]}
    below = {NAMES[0]: {**drawn[NAMES[0]], shared: both & ~drawn[NAMES[1]][shared]}, NAMES[1]: drawn[NAMES[1]]}
    found["overlap"] = put(images, "highdicom", overlapping, below)
    return found


@pytest.mark.parametrize("what", [*TOOLS, "slices that overlap", "film", "overlap"])
def test_what_another_tool_stores_counts_within_seconds(what: str, site: Site, stored: dict[str, Stored]) -> None:
    """Segments by name; where they overlap the smaller one is kept."""
    case = stored[what]
    wait(lambda: submitted(site, case.image, case.series), site.server)
    print(f"\n{what}: counts {time.monotonic() - case.at:.1f} s after it came, at the latest")
    assert_counts(site, case.image, case.images, case.drawn)
    assert site.submission(case.image)["structures"] == {name: number for number, name in enumerate(case.drawn, 1)}
    assert set(case.drawn) <= set(site.server.info()["labels"])


def test_the_newest_counts_and_after_a_deletion_the_one_before(site: Site, tmp_path: Path) -> None:
    images = dicom_files.volume("MR", SHAPE, "in turns")
    image = site.put(images)
    drawings = [drawing(images, shift, PLAIN_NAMES) for shift in range(3)]
    first = site.put([foreign.by_slicer(images, drawings[0], tmp_path)])
    wait(lambda: submitted(site, image, first), site.server)
    second = site.put([foreign.by_ohif(images, drawings[1])])
    wait(lambda: submitted(site, image, second), site.server)
    assert_counts(site, image, images, drawings[1])

    third = foreign.by_highdicom(images, drawings[2])
    third.SeriesInstanceUID = second  # another instance in the same series
    third.SeriesDate, third.SeriesTime, third.ContentDate = "20990101", "000000", "20990101"
    site.put([third])
    wait(lambda: submitted(site, image, second) and _row(site, image) == 5, site.server)
    assert_counts(site, image, images, drawings[2])

    site.delete(second)
    wait(lambda: submitted(site, image, first), site.server)
    assert_counts(site, image, images, drawings[0])


def _row(site: Site, image: str) -> int:
    """The first row of the first structure in the image's label."""
    mask, names = site.label(image)
    return int(np.nonzero((mask.voxels == names[PLAIN_NAMES[0]]).any(axis=(0, 2)))[0][0])


def test_a_label_that_is_deleted_in_the_store_is_forgotten(site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, "in and out")
    image = site.put(images)
    series = site.put([foreign.by_ohif(images, drawing(images))])
    wait(lambda: submitted(site, image, series), site.server)
    completed = site.get("/datastore/").json()["completed"]
    site.delete(series)
    wait(lambda: site.submission(image) is None, site.server)
    assert site.get("/datastore/").json()["completed"] == completed - 1
    assert site.get("/datastore/label", label=image, tag="final").status_code == 404
    asked = {"structures": NAMES[0], "references": image}
    refused = site.server.infer("in_context", image, asked, output="json")
    assert refused.status_code == 400, refused.text


def test_a_label_may_come_before_its_images(site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, "in before")
    drawn = drawing(images)
    series = site.put([foreign.by_ohif(images, drawn)])
    wait(lambda: f"Segmentation {series} refers to no image series" in site.server.log(), site.server)
    [study] = {image.StudyInstanceUID for image in images}
    assert study in [entry["study"] for entry in refused(site)]
    image = site.put(images)
    wait(lambda: submitted(site, image, series), site.server)
    assert study not in [entry["study"] for entry in refused(site)]
    assert_counts(site, image, images, drawn)


def refused(site: Site) -> list[dict[str, str]]:
    """What the page and the mode tell of labels that cannot be used."""
    return list(site.get("/kprism/api/status").json()["cases"]["refused"])


def test_a_segmentation_that_cannot_be_used_leaves_the_label_alone(site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, "in bad")
    image = site.put(images)
    drawn = drawing(images)
    series = site.put([foreign.by_ohif(images, drawn)])
    wait(lambda: submitted(site, image, series), site.server)
    elsewhere = foreign.by_highdicom(images, drawn)
    for group in elsewhere.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient = [900, 900, 900]
    bad = site.put([elsewhere])
    stranger = foreign.by_ohif(images, drawn)
    stranger.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    other = site.put([stranger])
    wait(lambda: f"Segmentation {bad} cannot be used: the segmentation lies outside" in site.server.log(), site.server)
    wait(lambda: f"Segmentation {other} refers to no image series" in site.server.log(), site.server)
    [study] = {image.StudyInstanceUID for image in images}
    told = [entry for entry in refused(site) if entry["study"] == study]
    assert len(told) == 2 and any("lies outside" in entry["reason"] for entry in told)
    site.delete(bad)
    wait(lambda: len([entry for entry in refused(site) if entry["study"] == study]) == 1, site.server)
    assert submitted(site, image, series)
    assert_counts(site, image, images, drawn)


def strip(segmentation: Dataset, what: str) -> Dataset:
    """A segmentation that says less about its images; `what` is all that is left."""
    del segmentation.ReferencedSeriesSequence
    segmentation.pop("SourceImageSequence", None)
    if what == "frame of reference":
        for group in segmentation.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
    if what == "source images":
        segmentation.pop("FrameOfReferenceUID", None)
    return segmentation


@pytest.mark.parametrize("what", ["source images", "frame of reference"])
def test_a_segmentation_without_referenced_series_is_found(what: str, site: Site) -> None:
    """Another series of the study, on the same frame of reference, has other planes."""
    images, other = (dicom_files.volume("CT", SHAPE, f"found by {what}") for _ in range(2))
    moved = generate_uid()
    for number, item in enumerate(other):
        item.SeriesInstanceUID = moved
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        item.ImagePositionPatient = [0, 0, 3.5 * number]
    site.put(other)
    image, drawn = site.put(images), drawing(images)
    series = site.put([strip(foreign.by_ohif(images, drawn), what)])
    wait(lambda: submitted(site, image, series), site.server)
    assert_counts(site, image, images, drawn)


def name_as_elsewhere(segmentation: Dataset, images: list[Dataset]) -> Dataset:
    """The images are named where the standard wants those of other studies."""
    study = Dataset()
    study.StudyInstanceUID = images[0].StudyInstanceUID
    study.ReferencedSeriesSequence = segmentation.ReferencedSeriesSequence
    del segmentation.ReferencedSeriesSequence
    segmentation.StudiesContainingOtherReferencedInstancesSequence = [study]
    return segmentation


@pytest.mark.parametrize("what", ["other studies", "source images", "frame of reference"])
def test_a_segmentation_in_another_study_is_found(what: str, site: Site) -> None:
    """The study of the segmentation has images of its own, and another patient has a series on the same frame."""
    images, own, stranger = (dicom_files.volume("CT", SHAPE, f"elsewhere by {what}") for _ in range(3))
    image, drawn = site.put(images), drawing(images)
    segmentation = foreign.by_ohif(images, drawn)
    segmentation.StudyInstanceUID, series_of_others = generate_uid(), [generate_uid(), generate_uid()]
    for others, series in zip((own, stranger), series_of_others, strict=True):
        for item in others:
            item.StudyInstanceUID, item.SeriesInstanceUID = segmentation.StudyInstanceUID, series
            item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for item in own:
        item.FrameOfReferenceUID = f"{item.FrameOfReferenceUID}.1"[-64:].lstrip(".0")
    for item in stranger:
        item.PatientID, item.StudyInstanceUID = f"{item.PatientID} too", f"{item.StudyInstanceUID}.1"[-64:].lstrip(".0")
    site.put(own)
    site.put(stranger)
    if what == "other studies":
        series = site.put([name_as_elsewhere(segmentation, images)])
    else:
        series = site.put([strip(segmentation, what)])
    wait(lambda: submitted(site, image, series), site.server)
    assert_counts(site, image, images, drawn)


def test_a_segmentation_that_fits_two_series_is_told_and_found_when_one_is_left(site: Site) -> None:
    images, other = (dicom_files.volume("CT", SHAPE, "fits two") for _ in range(2))
    for item in other:
        item.SeriesInstanceUID = f"{images[0].SeriesInstanceUID}1"[-60:].lstrip(".0")
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image, second, drawn = site.put(images), site.put(other), drawing(images)
    series = site.put([strip(foreign.by_ohif(images, drawn), "frame of reference")])
    wait(
        lambda: (
            f"Segmentation {series} names no images that are here, and 2 series of its patient fit" in site.server.log()
        ),
        site.server,
    )
    reasons = [entry["reason"] for entry in refused(site) if entry["study"] == images[0].StudyInstanceUID]
    assert any("2 series of its patient fit its frame of reference" in reason for reason in reasons)
    site.delete(second)
    wait(lambda: submitted(site, image, series), site.server)
    assert_counts(site, image, images, drawn)


def test_a_lesion_in_its_organ_is_kept_and_the_panel_is_told(site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, "lesion")
    keys = [place[:2] for place in places(images)]
    lesion, organ = (np.zeros((images[0].Rows, images[0].Columns), bool) for _ in range(2))
    lesion[8:12, 10:15], organ[4:20, 5:30] = True, True
    image = site.put(images)
    drawn = {"lesion": dict.fromkeys(keys[2:3], lesion), "organ": dict.fromkeys(keys[1:4], organ)}
    series = site.put([foreign.by_ohif(images, drawn)])
    wait(lambda: submitted(site, image, series), site.server)
    expected = {"lesion": drawn["lesion"], "organ": {**drawn["organ"], keys[2]: organ & ~lesion}}
    assert_counts(site, image, images, expected)
    [note] = site.get(f"/kprism/api/case/{image}").json()["label"]["notes"]
    assert note == "'organ' is without 20 voxels that are also in 'lesion': the smaller structure has them."
    assert note in site.server.log()


def test_a_label_map_segmentation_counts(site: Site) -> None:
    images = dicom_files.volume("CT", SHAPE, "label map")
    image, series = site.put(images), dicom_files.series_of(images)
    labels = np.random.default_rng(0).integers(0, 3, series.grid).astype(np.uint8)
    stored = site.put([write_seg(labels, {NAMES[0]: 1, NAMES[1]: 2}, series, "label map", seg_type="labelmap")])
    wait(lambda: submitted(site, image, stored), site.server)
    rows = {k: (frame.instance, frame.number) for k, frame in enumerate(series.frames)}
    drawn = {name: {rows[k]: value == labels[:, :, k].T for k in rows} for value, name in enumerate(NAMES, 1)}
    assert_counts(site, image, images, drawn)
