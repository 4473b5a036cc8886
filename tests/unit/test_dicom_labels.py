# SPDX-License-Identifier: Apache-2.0
"""Labels of a DICOMweb server: whom a broken, slow or missing one concerns, and what they need to be learned from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from kprism_model.data.partial import AnnotatedCase
from kprism_model.training.validation import ValidationSettings
from lib.dicom.arrival_times import STRUCTURE_SETS
from lib.dicom.datastore import FINAL, DicomStore
from lib.dicom.refresher import PAUSE
from lib.dicom.seg_reader import SegLabels, read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series
from lib.dicom.volumes import save_volume
from lib.dicom.web import SeriesEntry, StoreDownError
from lib.errors import NotFoundError
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.reading import read_mask
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission, SubmissionStore
from lib.trainers.case_cache import CaseCache
from tests.unit import dicom_files
from tests.unit.dicom_server import MemoryServer, refusal
from tests.unit.rtstructs import box, foreign
from tests.unit.seg_nrrd_files import write_seg_nrrd


class Clinic:
    """A server with the CTs of two patients, and a store of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first, self.second = dicom_files.volume(), dicom_files.volume(name="other")
        self.images = [str(series[0].SeriesInstanceUID) for series in (self.first, self.second)]
        self.server = MemoryServer([*self.first, *self.second])
        self.store = self.opened()

    def opened(self, name: str = "cache") -> DicomStore:
        """A store with a folder of its own."""
        return DicomStore(self.server, self.folder / name)

    def label(self, image: str, value: int = 1) -> Path:
        """A label file."""
        series = self.store.open_series(image)
        labels = np.zeros(series.grid, np.uint8)
        labels[2:6, 2:6, 1:3] = value
        path = self.folder / f"{image}.nii.gz"
        save_volume(labels, series.affine, path)
        return path


def service(clinic: Clinic) -> SubmissionService:
    """The submissions of the clinic's labels."""
    return SubmissionService(SubmissionStore(clinic.folder / "intake"), clinic.store, LabelRegistry())


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def test_a_label_is_submitted_although_no_voxel_of_its_image_can_be_fetched(clinic: Clinic) -> None:
    [image, _] = clinic.images
    sent = clinic.label(image)
    clinic.server._http_get = lambda *_, **__: (_ for _ in ()).throw(refusal(404))  # type: ignore[method-assign]
    submissions = service(clinic)
    entry = submissions.submit(image, sent, {"label_names": {"liver": 1}})
    assert entry is not None and entry == submissions.store.get(image)
    assert (submissions.store.folder / entry.label).stat().st_size
    assert clinic.store.get_label_info(image, FINAL)["label_names"] == {"liver": 1}
    assert clinic.server.fetched == []
    other = clinic.opened("other")  # takes the label over, as one that somebody else stored
    other.settle()
    adopting = SubmissionService(SubmissionStore(clinic.folder / "other intake"), other, LabelRegistry())
    adopted = adopting.adopt(image)
    assert adopted is not None and adopted.content == entry.content
    assert clinic.server.fetched == []
    assert not [path for path in (clinic.folder / "other").iterdir() if path.name.startswith(f".{image}")]


def stored_by_others(clinic: Clinic, number: int, name: str = "liver") -> Dataset:
    """A segmentation that somebody has put on the server."""
    series = dicom_files.series_of([clinic.first, clinic.second][number])
    labels = np.zeros(series.grid, np.uint8)
    labels[2:6, 2:6, 1:3] = 1
    segmentation = write_seg(labels, {name: 1}, series, "K-Prism")
    clinic.server.instances.append(segmentation)
    return segmentation


@pytest.mark.parametrize("kind", [TypeError, IndexError, RuntimeError, OSError, NotImplementedError])
def test_a_malformed_segmentation_concerns_nobody_else(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    malformed, whole = (stored_by_others(clinic, number) for number in range(2))

    def read(instance: Dataset, series: Series) -> SegLabels:
        if instance.SOPInstanceUID == malformed.SOPInstanceUID:
            raise kind("cannot reshape")
        return read_seg(instance, series)

    monkeypatch.setattr("lib.dicom.label_objects.read_seg", read)
    clinic.store.settle()
    assert clinic.store.get_labeled_images() == [clinic.images[1]]
    [unusable] = clinic.store.unusable()
    assert unusable.entry.series == malformed.SeriesInstanceUID != whole.SeriesInstanceUID
    assert unusable.reason == "cannot be used: cannot reshape"


def test_a_segmentation_that_cannot_be_fetched_now_is_adopted_later(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    [image, _] = clinic.images
    clinic.store.open_series(image)
    stored_by_others(clinic, 0)
    fetch = clinic.server.iter_series
    monkeypatch.setattr(clinic.server, "iter_series", lambda *_, **__: (_ for _ in ()).throw(refusal(404)))
    clinic.store.see_label(image)
    assert not clinic.store.get_label_uri(image, FINAL)
    assert ["status 404" in unusable.reason for unusable in clinic.store.unusable()] == [True]
    monkeypatch.setattr(clinic.server, "iter_series", fetch)
    clinic.store._index._postponed.clear()
    clinic.store.settle()
    assert clinic.store.get_label_uri(image, FINAL)
    assert clinic.store.unusable() == []


def test_structure_sets_that_were_there_before_an_upgrade_replace_no_label(clinic: Clinic) -> None:
    first, second = clinic.images
    segmentation = stored_by_others(clinic, 0)
    clinic.store.settle()
    times = clinic.folder / "cache" / "segmentations.json"
    noted = json.loads(times.read_text())
    times.write_text(json.dumps({series: at for series, at in noted.items() if series != STRUCTURE_SETS}))
    for images in (clinic.first, clinic.second):
        clinic.server.instances.append(plan(images))
    upgraded = clinic.opened()
    upgraded.see_label(first)
    upgraded.settle()
    assert upgraded.get_label_info(first, FINAL)["SOPInstanceUID"] == segmentation.SOPInstanceUID
    assert upgraded.get_label_info(second, FINAL)["label_names"] == {"target": 1}  # there is no other
    newer = plan(clinic.first)
    clinic.server.instances.append(newer)
    for store in (upgraded, clinic.opened()):
        store.settle()
        assert store.get_label_info(first, FINAL)["SOPInstanceUID"] == newer.SOPInstanceUID


def plan(images: list[Dataset]) -> Dataset:
    """A structure set of another tool, of the year 2024."""
    return foreign(dicom_files.series_of(images), {"target": [(box(1.5, 1.5, 6.5, 5.5), 2)]}, references=True)


def test_a_store_is_listed_once_more_for_structure_sets_and_one_that_ignores_filters_is_not(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_by_others(clinic, 0)
    clinic.server.instances.append(plan(clinic.second))
    search = clinic.store.web.search
    for ignored, searches in (((), ["SEG", "RTSTRUCT"]), (("Modality",), ["SEG"])):
        asked: list[str] = []

        def noted(ignored: tuple[str, ...] = ignored, asked: list[str] = asked, **filters: str) -> list[SeriesEntry]:
            asked.append(filters["Modality"])
            return search(**{name: value for name, value in filters.items() if name not in ignored})

        monkeypatch.setattr(clinic.store.web, "search", noted)
        assert [entry.modality for entry in clinic.store._listed_labels()] == ["SEG", "RTSTRUCT"]
        assert asked == searches


def test_a_listener_that_fails_hears_again_of_what_it_missed(clinic: Clinic) -> None:
    heard: list[str] = []

    def listen(image: str, label: str) -> None:
        heard.append(image)
        if len(heard) == 1:
            raise ValueError("a bug")

    clinic.store.on_label, clinic.store.on_removed = listen, heard.append
    for number in range(2):
        stored_by_others(clinic, number)
    with pytest.raises(ValueError, match="a bug"):
        clinic.store.settle()
    clinic.store.settle()
    assert sorted(heard[1:]) == sorted(clinic.images)
    clinic.store.settle()
    assert len(heard) == 3


def test_who_opens_a_case_does_not_wait_for_the_labels_of_others(clinic: Clinic) -> None:
    first, second = clinic.images
    stored_by_others(clinic, 1)
    listening, go_on, by = Event(), Event(), {}

    def listen(image: str, label: str) -> None:
        by[image] = current_thread()
        if image == second:
            listening.set()
            assert go_on.wait(60)

    clinic.store.on_label, clinic.store.on_removed = listen, by.get
    clinic.store.sync()
    assert listening.wait(60)
    stored_by_others(clinic, 0)
    clinic.store._changed.append("another")  # collected by the thread, which tells of it
    clinic.store.sync_image(first)
    assert clinic.store.get_label_uri(first, FINAL)
    assert by[first] is current_thread()
    assert "another" not in by and clinic.store._changed == ["another"]
    clinic.store._changed.clear()
    go_on.set()
    clinic.store.settle()
    assert by[second] is not current_thread()


def test_a_series_that_is_not_listed_yet_is_opened_without_a_listing(clinic: Clinic) -> None:
    first, second = clinic.images
    clinic.server.instances = [*clinic.first]
    assert clinic.store._entries(complete=True).keys() == {first}
    clinic.server.instances = [*clinic.first, *clinic.second]
    clinic.server.asked.clear()
    assert clinic.store.open_series(second).uid == second
    assert all("SeriesInstanceUID" in filters for filters in clinic.server.asked)
    for missing in ("1.2.3", "nothing", str(stored_by_others(clinic, 0).SeriesInstanceUID)):
        with pytest.raises(NotFoundError):
            clinic.store.open_series(missing)
    filtered = DicomStore(clinic.server, clinic.folder / "filtered", {"Modality": "MR"})
    with pytest.raises(NotFoundError):
        filtered.open_series(first)
    clinic.server.is_down = True
    assert clinic.store.open_series(second).uid == second
    with pytest.raises(StoreDownError):
        clinic.store.open_series("1.2.3")


def test_adopting_labels_does_not_count_as_the_servers_time(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_by_others(clinic, 0)
    clinic.store.on_label, clinic.store.on_removed = (lambda image, label: time.sleep(1)), (lambda image: None)
    clinic.store.settle()
    assert clinic.store.sync_pause < PAUSE
    monkeypatch.setattr(clinic.server, "is_down", True)
    clinic.store.settle()
    assert clinic.store.sync_pause == 0.0


def test_a_reduced_case_needs_no_volume(clinic: Clinic) -> None:
    [image, _] = clinic.images
    submissions = service(clinic)
    entry = submissions.submit(image, clinic.label(image), {"label_names": {"liver": 1}})
    assert entry is not None
    loads: list[str] = []

    def load(submission: Submission) -> AnnotatedCase:
        loads.append(submission.image_id)
        return submissions.load(submission)

    cases = CaseCache(clinic.folder / "cases", load, submissions.files, ValidationSettings())
    cases.get(entry)
    fetched = len(clinic.server.fetched)
    assert fetched == len(clinic.first)
    Path(clinic.store.get_image_uri(image)).unlink()  # other series needed the place
    training = DicomStore(clinic.server, clinic.folder / "cache", auto_sync=False)
    beside = SubmissionService(submissions.store, training, LabelRegistry())
    CaseCache(clinic.folder / "cases", load, beside.files, ValidationSettings()).get(entry)
    assert loads == [image] and len(clinic.server.fetched) == fetched
    clinic.store._forget(image)  # its images have changed
    cases.get(entry)
    assert loads == [image, image]


REVERSED = {"label_info": [{"name": "c", "id": 3}, {"name": "b", "id": 2}, {"name": "a", "id": 1}]}
OF_SLICER = {"label_info": [{"name": "a", "idx": 2}, {"name": "b", "idx": 3}, {"name": "c", "idx": 5}]}


def drawn(clinic: Clinic, *values: int) -> NDArray[np.int32]:
    """A row of voxels of each value on the grid of the first series."""
    labels = np.zeros(clinic.store.open_series(clinic.images[0]).grid, np.int32)
    for row, value in enumerate(values):
        labels[2:6, 2 + row, 1:3] = value
    return labels


def check_stored(clinic: Clinic, service: SubmissionService, masks: dict[str, NDArray[np.bool_]]) -> None:
    """The segmentation on the server, the submission, and what another server adopts have these masks."""
    series = clinic.store.open_series(clinic.images[0])
    segmentation = clinic.server.instances[-1]
    seg = read_seg(segmentation, series)
    assert {name: int(np.count_nonzero(mask)) for name, mask in masks.items()} == {
        name: int(np.count_nonzero(seg.labels == value)) for name, value in seg.names.items()
    }
    for name, mask in masks.items():
        np.testing.assert_array_equal(seg.labels == seg.names[name], mask)
    [entry] = service.store.submissions()
    kept = read_mask(service.store.folder / entry.label, "kept").array
    assert set(entry.structures) == set(masks)
    for name, mask in masks.items():
        np.testing.assert_array_equal(kept == entry.structures[name], mask)
    service.adopt(clinic.images[0])
    assert service.store.rejected() == {}
    assert service.store.submissions()[0].content == entry.content


@pytest.mark.parametrize(
    ("info", "values", "expected"),
    [
        (REVERSED, (1, 2, 3), {"a": (1,), "b": (2,), "c": (3,)}),
        (OF_SLICER, (1, 2, 3), {"a": (1,), "b": (2,), "c": (3,)}),
        ({"label_info": [{"name": "b", "id": 1001}, {"name": "a", "id": 7}]}, (7, 1001), {"a": (7,), "b": (1001,)}),
        ({"label_names": {"a": [1, 3], "b": 2}}, (1, 2, 3), {"a": (1, 3), "b": (2,)}),
        ({"label_info": [{"name": "background", "id": 1}, {"name": "b", "id": 2}]}, (1, 2), {"b": (2,)}),
    ],
)
def test_names_reach_the_store_as_they_are_meant(
    clinic: Clinic, info: dict[str, Any], values: tuple[int, ...], expected: dict[str, tuple[int, ...]]
) -> None:
    [image, _] = clinic.images
    labels = drawn(clinic, *values)
    path = clinic.folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, clinic.store.open_series(image).affine), path)
    submissions = service(clinic)
    assert submissions.submit(image, path, info) is not None
    check_stored(clinic, submissions, {name: np.isin(labels, own) for name, own in expected.items()})


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RAI", "PSL", "SAR"])
def test_a_label_in_another_orientation_is_stored_where_it_is(clinic: Clinic, axes: str) -> None:
    [image, _] = clinic.images
    labels = drawn(clinic, 1, 2, 3)
    label = nibabel.Nifti1Image(labels.astype(np.uint8), clinic.store.open_series(image).affine)
    change = ornt_transform(io_orientation(label.affine), axcodes2ornt(tuple(axes)))
    path = clinic.folder / "label.nii.gz"
    nibabel.save(label.as_reoriented(change), path)
    submissions = service(clinic)
    assert submissions.submit(image, path, REVERSED) is not None
    check_stored(clinic, submissions, {"a": labels == 1, "b": labels == 2, "c": labels == 3})


@pytest.mark.parametrize("offset", [(0, 0, 0), (1, 2, 1), (2, 1, 0)])
@pytest.mark.parametrize("tag", [FINAL, "original"])
def test_a_cropped_file_of_segments_is_stored(clinic: Clinic, offset: tuple[int, int, int], tag: str) -> None:
    [image, _] = clinic.images
    labels = drawn(clinic, 2, 1)
    crop = labels[offset[0] :, offset[1] : 7, offset[2] : 3].astype(np.uint8)
    rows = [("first", 2, 0), ("second", 1, 0)]
    affine = clinic.store.open_series(image).affine
    file = write_seg_nrrd(clinic.folder / "label.seg.nrrd", crop, affine, rows, offset=offset)
    submissions = service(clinic)
    if tag == FINAL:
        assert submissions.submit(image, file, {}) is not None
        check_stored(clinic, submissions, {"first": labels == 2, "second": labels == 1})
        return
    clinic.store.save_label(image, str(file), tag, {})
    kept = read_mask(Path(clinic.store.get_label_uri(image, tag)), "kept").array
    names = clinic.store.get_label_info(image, tag)["label_names"]
    np.testing.assert_array_equal(kept == names["first"], labels == 2)
    np.testing.assert_array_equal(kept == names["second"], labels == 1)
