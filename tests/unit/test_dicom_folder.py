# SPDX-License-Identifier: Apache-2.0
"""What a folder of DICOM files is known to hold: whatever happens to the files, and to the notes about them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from lib.dicom import dicom_folder, folder_index, folder_report
from lib.dicom.datastore import FINAL
from lib.dicom.dicom_files import UnusableFileError, read_object
from lib.dicom.dicom_folder import DicomFolder
from lib.dicom.dicom_folder_store import DicomFolderStore
from lib.dicom.mixed_store import MixedStore
from lib.dicom.open_store import open_folder
from lib.dicom.rtstruct_writer import write_rtstruct
from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.volumes import save_volume
from lib.dicom.web import StoreDownError, StoreError
from lib.errors import RequestError
from lib.folder_store import FolderStore
from lib.image_ids import check_id
from lib.imaging.reading import read_image, read_mask
from lib.labelled_cases import hand_names
from tests.e2e import dicom_folders as made
from tests.unit import dicom_files

pytestmark = pytest.mark.filterwarnings("ignore:The 'DicomDir' class")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look counts, and no file has to be quiet."""
    monkeypatch.setattr(dicom_folder, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(dicom_folder, "SCAN_SECONDS", 0.0)
    monkeypatch.setattr(dicom_folder, "SCAN_PAUSE", 0.0)
    monkeypatch.setattr(folder_report, "SETTLED_SECONDS", 0.0)


def written(folder: Path, name: str = "a", **more: Any) -> list[Any]:
    images = made.series(name, **more)
    made.write(images, folder)
    return images


def counts(folder: DicomFolder, **filters: str) -> dict[str, int]:
    """Series -> number of instances."""
    return {entry.series: entry.instances for entry in folder.search(**filters)}


def reasons(folder: DicomFolder) -> dict[str, str]:
    folder.search()
    return dict(folder.not_served())


CUTS: dict[str, Callable[[list[Any], Path], object]] = {
    "explicit": made.write,
    "implicit": lambda images, folder: made.write(made.compressed(images, ImplicitVRLittleEndian), folder),
    "bare": made.write_bare,
    "compressed": lambda images, folder: made.write(made.compressed(images, RLELossless), folder),
    "deflated": lambda images, folder: made.write(made.compressed(images, made.DEFLATED), folder),
}


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("left", [0.99, 0.7, 0.4])
def test_a_file_that_is_cut_off_is_told_from_a_whole_one(kind: str, left: float, tmp_path: Path) -> None:
    CUTS[kind](made.series("a")[:1], tmp_path)
    [path] = tmp_path.iterdir()
    assert read_object(path).facts.patient == "a"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(UnusableFileError, match=r"is truncated: at least|is damaged"):
        read_object(path)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("SeriesInstanceUID", "../../etc"),
        ("SeriesInstanceUID", ""),
        ("SOPInstanceUID", "a/b"),
        ("StudyInstanceUID", ""),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_identifiers_that_are_none_are_refused(attribute: str, value: str, tmp_path: Path) -> None:
    written(tmp_path, **({attribute: value} if attribute != "SOPInstanceUID" else {}))
    if attribute == "SOPInstanceUID":
        for image in made.series("b"):
            image.SOPInstanceUID = value
            image.save_as(tmp_path / f"b{image.InstanceNumber}")
        for path in tmp_path.glob("IM*"):
            path.unlink()
    folder = DicomFolder(tmp_path)
    assert counts(folder) == {}
    assert len(reasons(folder)) == 10
    assert all("identifiers" in reason or "has no " in reason for reason in reasons(folder).values())


def test_a_series_is_listed_when_its_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = made.series("a")
    series = str(images[0].SeriesInstanceUID)
    monkeypatch.setattr(dicom_folder, "QUIET_SECONDS", 1e6)
    made.write(images[:6], tmp_path)
    folder = DicomFolder(tmp_path)
    assert counts(folder) == {}
    assert folder.changing == [series]
    monkeypatch.setattr(dicom_folder, "QUIET_SECONDS", 0.0)
    assert counts(folder) == {series: 6}
    monkeypatch.setattr(dicom_folder, "QUIET_SECONDS", 1e6)
    made.write(images[6:], tmp_path / "more")
    assert counts(folder) == {series: 6}  # as it was before, while it grows
    monkeypatch.setattr(dicom_folder, "QUIET_SECONDS", 0.0)
    assert counts(folder) == {series: 10}
    shutil.rmtree(tmp_path / "more")
    assert counts(folder) == {series: 6}


def test_old_files_need_not_be_waited_for_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_folder, "QUIET_SECONDS", 0.2)
    written(tmp_path)
    time.sleep(0.3)
    assert len(counts(DicomFolder(tmp_path))) == 1


def test_a_folder_that_is_away_keeps_what_it_had(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    images = written(root / "a")
    folder = DicomFolder(root)
    before = counts(folder)
    root.rename(tmp_path / "away")
    with pytest.raises(StoreDownError, match="mount cannot be read: No such file"):
        folder.search()
    root.mkdir()
    with pytest.raises(StoreDownError, match="holds no files any more; is its drive connected"):
        folder.search()
    assert folder.lists(str(images[0].SeriesInstanceUID))
    root.rmdir()
    (tmp_path / "away").rename(root)
    assert counts(folder) == before


def test_what_was_read_once_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies, notes = tmp_path / "studies", tmp_path / "state" / "files.jsonl"
    written(studies / "a", "a")
    written(studies / "b", "b", PatientName="山田^太郎", SpecificCharacterSet="ISO_IR 192")
    (studies / "note.dcm").write_text("none")
    before = DicomFolder(studies, notes)
    expected, unusable = before.search(), reasons(before)
    read: list[str] = []
    monkeypatch.setattr(folder_index, "read_object", lambda path: read.append(path.name))
    again = DicomFolder(studies, notes)
    assert again.search() == expected
    assert reasons(again) == unusable
    assert read == []
    assert {series.facts.patient_name for series in again.listed().values()} == {"Test a", "山田 太郎"}
    beside = DicomFolder(studies, notes, scans=False)
    assert beside.search() == expected


@pytest.mark.parametrize("damage", ["torn", "garbage", "other version", "empty", "wrong numbers"])
def test_damaged_notes_cost_time_and_nothing_else(damage: str, tmp_path: Path) -> None:
    studies, notes = tmp_path / "studies", tmp_path / "files.jsonl"
    written(studies / "a", "a")
    written(studies / "b", "b")
    expected = DicomFolder(studies, notes).search()
    content = notes.read_text()
    lines = content.splitlines(keepends=True)
    notes.write_text(
        {
            "torn": content[:-25],
            "garbage": "".join([lines[0], "\0\0\n", '["x"]\n', "[1, 2, 3, 4, 5, 6]\n", *lines[3:]]),
            "other version": "".join(['{"layout": 99}\n', *lines[1:]]),
            "empty": "",
            "wrong numbers": content.replace('"number": 1}', '"number": 77}'),
        }[damage]
    )
    assert set(DicomFolder(studies, notes).search()) == set(expected)
    assert set(DicomFolder(studies, notes, scans=False).search()) == set(expected)


def test_files_that_were_written_over_change_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = written(tmp_path)
    folder = DicomFolder(tmp_path)
    series = str(images[0].SeriesInstanceUID)
    folder.search()
    state = folder.state(series)
    folder.search()
    assert folder.state(series) == state != ""
    images[3].PixelData = bytes(len(images[3].PixelData))
    made.write(images[3:4], tmp_path, lambda number: "IM000003")
    folder.search()
    assert folder.state(series) != state
    [header] = [item for item in folder.fetch("", series) if item.InstanceNumber == 4]
    assert not header.pixel_array.any()


def test_the_same_instance_twice_is_one(tmp_path: Path) -> None:
    images = written(tmp_path / "b")
    made.write(images, tmp_path / "a")
    made.write(images[:3], tmp_path / "c" / "d")
    folder = DicomFolder(tmp_path)
    assert counts(folder) == {str(images[0].SeriesInstanceUID): 10}
    assert {path.parent.name for path in folder.listed()[str(images[0].SeriesInstanceUID)].files.values()} == {"a"}


def test_a_series_in_two_studies_is_that_of_the_one_with_more_files(tmp_path: Path) -> None:
    series = generate_uid()
    first = written(tmp_path / "a", SeriesInstanceUID=series)
    other = made.series("a", made.body()[:, :, :4], SeriesInstanceUID=series)
    made.write(other, tmp_path / "b")
    folder = DicomFolder(tmp_path)
    [entry] = folder.search()
    assert (entry.study, entry.instances) == (first[0].StudyInstanceUID, 10)
    assert other[0].StudyInstanceUID in reasons(folder)[f"series {series}"]


def test_links_and_hidden_files(tmp_path: Path) -> None:
    root = tmp_path / "studies"
    images = written(root / "a")
    written(tmp_path / "elsewhere", "b")
    written(root / ".trash", "c")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "nowhere").symlink_to(root / "gone")
    shutil.copy(root / "a" / "IM000000", root / "a" / "._IM000000")
    entries = DicomFolder(root).search()
    assert {(entry.patient, entry.instances) for entry in entries} == {("a", 10), ("b", 10)}
    assert len(images) == 10


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"Modality": "MR"}, {"b"}),
        ({"PatientID": "a*"}, {"a", "ab"}),
        ({"SeriesDescription": "axial ?"}, {"a", "b"}),
        ({"Modality": "CT", "PatientID": "ab"}, {"ab"}),
    ],
)
def test_series_are_found_by_what_is_known_of_them(filters: dict[str, str], found: set[str], tmp_path: Path) -> None:
    for name in ("a", "b", "ab"):
        written(tmp_path / name, name, Modality="MR" if name == "b" else "CT")
    folder = DicomFolder(tmp_path)
    assert {entry.patient for entry in folder.search(**filters)} == found
    assert {entry.patient for page in folder.pages(**filters) for entry in page} == found
    with pytest.raises(StoreError, match="no list by AccessionNumber; expected one of Modality"):
        folder.search(AccessionNumber="1")


def test_many_files_are_listed_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_index, "CHUNK", 10)
    for name in "abcd":
        written(tmp_path / name, name)
    folder = DicomFolder(tmp_path)
    pages, progress = [], []
    for page in folder.pages():
        pages.append({entry.patient for entry in page})
        progress.append(folder.progress)
        if len(pages) == 1:
            with pytest.raises(StoreDownError, match="is not known yet: 10 of 40 files"):
                folder.find("1.2.3")
    assert pages == [set(), {"a"}, {"a", "b"}, {"a", "b", "c", "d"}]
    assert progress == [(10, 40), (20, 40), (30, 40), None]


def test_indexing_ends_with_the_server_and_goes_on_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "CHUNK", 10)
    for name in "abcd":
        written(tmp_path / "studies" / name, name)
    folder = DicomFolder(tmp_path / "studies", tmp_path / "notes")
    pages = folder.pages()
    assert [next(pages), next(pages)] != []
    folder.end()
    with pytest.raises(StoreDownError, match="the server ends"):
        next(pages)
    read: list[Path] = []
    whole = folder_index.read_object
    monkeypatch.setattr(folder_index, "read_object", lambda path: (read.append(path), whole(path))[1])
    assert len(DicomFolder(tmp_path / "studies", tmp_path / "notes").search()) == 4
    assert len(read) == 10


def test_an_image_that_is_gone_is_said(tmp_path: Path) -> None:
    images = written(tmp_path)
    folder = DicomFolder(tmp_path)
    folder.search()
    series, instance = str(images[0].SeriesInstanceUID), str(images[2].SOPInstanceUID)
    (tmp_path / "IM000002").unlink()
    with pytest.raises(StoreError, match=f"has no image {instance} any more: IM000002 is gone"):
        folder.instance_file("", series, instance)
    with pytest.raises(StoreError, match=r"has no image 1\.2\.3 any more"):
        folder.instance_file("", series, "1.2.3")
    with pytest.raises(StoreError, match=r"has no series 1\.2\.4 any more"):
        folder.instance_file("", "1.2.4", instance)


def opened(studies: Path, state: Path) -> Any:
    return open_folder(studies, state, 1 << 30, None)


def test_the_datastore_fits_what_the_folder_holds(tmp_path: Path) -> None:
    for name in ("dicom", "files", "both", "nothing"):
        (tmp_path / name).mkdir()
    for name in ("dicom", "both"):
        written(tmp_path / name / "sub")
    for name in ("files", "both"):
        save_volume(made.body(), np.eye(4), tmp_path / name / "volume.nii.gz")
    kinds = {
        name: type(opened(tmp_path / name, tmp_path / name / ".kprism"))
        for name in ("dicom", "files", "both", "nothing")
    }
    assert kinds == {"dicom": DicomFolderStore, "files": FolderStore, "both": MixedStore, "nothing": MixedStore}
    assert sorted(path.name for path in (tmp_path / "dicom").iterdir()) == [".kprism", "sub"]


@pytest.mark.parametrize("place", [".", "sub", "a/b"])
def test_data_sets_without_a_header_are_served_beside_other_files(place: str, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    images = made.series("bare")
    made.write_bare(images, studies / place)
    save_volume(made.body(), np.eye(4), studies / "volume.nii.gz")
    (studies / "notes.bin").write_bytes(b"\x08\x00\x05\x00 no data set")
    store = opened(studies, tmp_path / "state")
    assert isinstance(store, MixedStore)
    assert counts(DicomFolder(studies)) == {str(images[0].SeriesInstanceUID): len(images)}
    other = tmp_path / "other"
    other.mkdir()
    save_volume(made.body(), np.eye(4), other / "volume.nii.gz")
    (other / "notes.bin").write_bytes(b"\x08\x00\x05\x00 no data set")
    assert type(opened(other, tmp_path / "other state")) is FolderStore


def labelled(store: DicomFolderStore, image: str, folder: Path) -> np.ndarray:
    label = made.ball().astype(np.uint8)
    save_volume(label, store.open_series(check_id(image)).affine, folder / "label.nii.gz")
    store.save_label(image, str(folder / "label.nii.gz"), FINAL, {"label_info": [{"name": "ball"}]})
    return label


@pytest.mark.parametrize("others", [False, True])
def test_names_by_hand_lie_in_the_folder_of_studies(others: bool, tmp_path: Path) -> None:
    studies, state = tmp_path / "studies", tmp_path / "studies" / ".kprism"
    written(studies / "sub")
    (studies / "labels.json").write_text('{"labels": {"1": "liver"}}')
    if others:
        save_volume(made.body(), np.eye(4), studies / "volume.nii.gz")
    store = opened(studies, state)
    assert isinstance(store, MixedStore if others else DicomFolderStore)
    assert hand_names(store).of("1.2.3") == {1: "liver"}


def test_a_label_stays_over_a_restart_and_can_be_stored_elsewhere(tmp_path: Path) -> None:
    studies, state = tmp_path / "studies", tmp_path / "state"
    image = str(written(studies)[0].SeriesInstanceUID)
    files = DicomFolder(studies, state / "files.jsonl", segmentations=tmp_path / "labels")
    label = labelled(DicomFolderStore(files, state), image, tmp_path)
    assert [path.suffix for path in (tmp_path / "labels").iterdir()] == [".dcm"]
    assert sorted(path.name for path in studies.iterdir()) == [f"IM{number:06}" for number in range(10)]
    again = DicomFolder(studies, state / "files.jsonl", segmentations=tmp_path / "labels")
    store = DicomFolderStore(again, state)
    assert store.sync(force=True) == []
    assert store.get_labeled_images() == [image]
    fresh = DicomFolderStore(DicomFolder(studies, segmentations=tmp_path / "labels"), tmp_path / "new state")
    assert fresh.sync(force=True) == [image]
    np.testing.assert_array_equal(read_mask(Path(fresh.get_label_uri(image, FINAL)), "the label").array, label)


def test_a_label_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    image = str(written(studies)[0].SeriesInstanceUID)
    (studies / "segmentations").write_text("in the way")
    store = DicomFolderStore(DicomFolder(studies), tmp_path / "state")
    with pytest.raises(StoreError, match=r"segmentations.*cannot be written: .*; nothing was changed"):
        labelled(store, image, tmp_path)
    assert store.get_label_uri(image, FINAL) == ""


def seg_of(images: list[Any], mask: np.ndarray) -> Any:
    return made.segmentation(images, {"ball": mask})


def rtstruct_of(images: list[Any], mask: np.ndarray) -> Any:
    return write_rtstruct(mask.astype(np.uint8), {"ball": 1}, dicom_files.series_of(images), "K-Prism")


@pytest.mark.parametrize(("make", "renewed"), [(seg_of, False), (seg_of, True), (rtstruct_of, False)])
def test_a_label_that_is_written_over_is_read_again(
    make: Callable[[list[Any], np.ndarray], Any], renewed: bool, tmp_path: Path
) -> None:
    """A tool that saves its own file again: the series has the same identifier, the object perhaps another one."""
    studies, state = tmp_path / "studies", tmp_path / "state"
    images = written(studies)
    image = str(images[0].SeriesInstanceUID)
    block = np.zeros(made.SHAPE, bool)
    block[10:20, 12:20, 2:5] = True
    first, second = make(images, made.ball()), make(images, block)
    second.SeriesInstanceUID = first.SeriesInstanceUID
    if not renewed:
        second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    store = DicomFolderStore(DicomFolder(studies, state / "files.jsonl"), state)
    for expected, label in ((made.ball(), first), (block, second), (made.ball(), first)):
        label.save_as(studies / "label.dcm", write_like_original=False)
        assert store.sync(force=True) == [image]
        found = read_mask(Path(store.get_label_uri(image, FINAL)), "the label").array
        np.testing.assert_array_equal(found, expected)
        assert store.sync(force=True) == []
    again = DicomFolderStore(DicomFolder(studies, state / "files.jsonl"), state)
    assert again.sync(force=True) == []
    (studies / "label.dcm").unlink()
    assert again.sync(force=True) == [image]
    assert again.get_labeled_images() == []


@pytest.mark.parametrize("damage", ["RLE", "JPEG-LS", "JPEG 2000"])
def test_a_series_that_was_mended_is_served_again(damage: str, tmp_path: Path) -> None:
    images = made.series("a")
    image = str(images[0].SeriesInstanceUID)
    made.write(images, tmp_path / "studies")
    syntax = {"RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}[damage]
    made.compressed(images[4:5], syntax)
    images[4].PixelData = encapsulate([b"no picture at all."])
    made.write(images[4:5], tmp_path / "studies", lambda number: "IM000004")
    store = DicomFolderStore(DicomFolder(tmp_path / "studies"), tmp_path / "state")
    with pytest.raises(RequestError):
        store.get_image_uri(image)
    deadline = time.monotonic() + 20
    while store.get_unlabeled_images() and time.monotonic() < deadline:  # it is noted a moment after the answer
        time.sleep(0.01)
    assert store.get_unlabeled_images() == []
    made.write(made.again(images), tmp_path / "studies")
    store._listing._refresher.now()
    assert store.get_unlabeled_images() == [image]
    np.testing.assert_array_equal(read_image(Path(store.get_image_uri(image)), "the image").array, made.body())


def test_images_with_the_identifier_of_another_are_told_and_copies_are_not(tmp_path: Path) -> None:
    images = written(tmp_path)
    made.write(images, tmp_path / "copy")
    folder = DicomFolder(tmp_path)
    series = str(images[0].SeriesInstanceUID)
    assert (counts(folder), reasons(folder)) == ({series: 10}, {})
    shutil.rmtree(tmp_path / "copy")
    for image in (images[3], images[7]):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = images[0].SOPInstanceUID
    written_again = [path.name for path in sorted(tmp_path.glob("IM*"))]
    made.write(images, tmp_path)
    assert counts(folder) == {series: 8}
    reason = f"has the identifier of another image of series {series}, with another number or position"
    assert reasons(folder) == {written_again[3]: reason, written_again[7]: reason}
    notes = tmp_path / ".kprism" / "index"
    assert reasons(DicomFolder(tmp_path, notes)) == reasons(DicomFolder(tmp_path, notes)) == reasons(folder)
    for image in images:
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = images[0].SOPInstanceUID
    made.write(images, tmp_path)
    assert counts(folder) == {series: 1}
    assert len(reasons(folder)) == 9


@pytest.mark.parametrize("kind", ["PR", "SR", "KO"])
@pytest.mark.parametrize("name", ["A", "Z"])
def test_an_object_without_an_image_in_a_series_does_not_hide_the_images(kind: str, name: str, tmp_path: Path) -> None:
    images = written(tmp_path)
    report = made.report(images)
    report.SeriesInstanceUID, report.Modality = images[0].SeriesInstanceUID, kind
    made.write([report], tmp_path, lambda number: name)
    folder = DicomFolder(tmp_path)
    [entry] = folder.search()
    assert (entry.modality, entry.instances, entry.holds_images) == ("CT", 10, True)
    assert reasons(folder) == {f"1 {kind} object": "holds no image to segment"}


@pytest.mark.parametrize("syntax", [made.ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("lack", ["TransferSyntaxUID", "SOPClassUID"])
def test_files_that_say_too_little_of_themselves_are_completed(lack: str, syntax: str, tmp_path: Path) -> None:
    images = made.series("a")
    source = tmp_path / "images"
    source.mkdir()
    for number, image in enumerate(images):
        image.file_meta.TransferSyntaxUID, image.is_implicit_VR = syntax, syntax == ImplicitVRLittleEndian
        del (image.file_meta if lack == "TransferSyntaxUID" else image)[lack]
        image.save_as(source / f"IM{number:03}", write_like_original=True)
    store = DicomFolderStore(DicomFolder(source), tmp_path / "state")
    [name] = store.list_images()
    volume = store.volume(name)
    volume.complete()
    np.testing.assert_array_equal(volume.image("it").array, made.body())
    label = write_seg(made.ball().astype(np.uint8), {"ball": 1}, volume.series, "K-Prism")
    np.testing.assert_array_equal(read_seg(label, volume.series).labels, made.ball())


def test_names_with_a_backslash_are_shown_as_they_are(tmp_path: Path) -> None:
    images = made.series("a", PatientName="Doe\\Jane", SeriesDescription="axial\\thin", PatientID="7\\8")
    made.write(images, tmp_path)
    [facts] = {read_object(path).facts for path in tmp_path.iterdir()}
    assert (facts.patient_name, facts.description, facts.patient) == ("Doe\\Jane", "axial\\thin", "7\\8")
