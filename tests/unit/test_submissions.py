# SPDX-License-Identifier: Apache-2.0
"""Submitted labels: names by order, provenance, the folds, files that cannot be used, kills and full disks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lib.datastore import GuardedDatastore
from lib.errors import NotFoundError, RequestError
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image
from lib.learning.submission_service import StorageError, SubmissionService
from lib.learning.submission_store import FOLDS, SubmissionStore, choose_fold, new_since, patient_of
from lib.learning.submitted_label import REFUSE
from tests.unit.kill_at_rename import status_of_killed

SHAPE = (12, 10, 4)
LIVER_AND_SPLEEN = {"label_info": [{"name": "liver", "idx": 2}, {"name": "spleen", "idx": 3}]}


class Site:
    """A folder of four volumes with a datastore, a submission store and the service."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for name in "abcd":
            if not (folder / f"{name}.nii.gz").exists():
                write(folder / f"{name}.nii.gz", rng.normal(100, 30, SHAPE).astype(np.float32))
        self.datastore = GuardedDatastore(str(folder), extensions=["*.nii.gz", "*.nrrd"])
        self.label_registry = LabelRegistry(["liver"])
        self.store = SubmissionStore(folder / "intake")
        self.submissions = SubmissionService(self.store, self.datastore, self.label_registry, **settings)

    def label(self, *values: int, name: str = "label", shape: tuple[int, int, int] = SHAPE) -> Path:
        """A file with a block of each value, along the first axis."""
        labels = np.zeros(shape, np.uint8)
        for row, value in enumerate(values):
            labels[2 * row : 2 * row + 2, 2:8] = value
        return write(self.folder.parent / f"{name}.nii.gz", labels)

    def stored(self, image: str) -> np.ndarray:
        """The label of an image in MONAI Label's datastore."""
        return np.asarray(nibabel.load(self.datastore.get_label_uri(image, "final")).dataobj)


def write(path: Path, values: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 5.0, 1.0])), path)
    return path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "studies")


def test_names_belong_to_values_by_order_and_not_by_idx(site: Site) -> None:
    entry = site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN, by="anna")
    assert entry is not None
    assert dict(entry.structures) == {"liver": 1, "spleen": 2}
    assert (entry.image_id, entry.by, entry.revision, entry.fold) == ("a", "anna", 1, 0)
    case = site.submissions.load(entry)
    assert case.mask("liver").sum() == case.mask("spleen").sum() == 2 * 6 * 4
    assert case.images.shape == case.labels.shape == (4, 10, 12)
    assert site.label_registry.indices() == {"liver": 1, "spleen": 2}


def test_the_file_is_kept_as_it_was_sent_and_reaches_the_datastore(site: Site) -> None:
    sent = site.label(7)
    entry = site.submissions.submit("a", sent, {"label_names": {"tumour": 7}})
    assert entry is not None
    assert (site.store.folder / entry.raw).read_bytes() == sent.read_bytes()
    assert np.unique(site.stored("a")).tolist() == [0, 7]
    assert np.unique(site.submissions.load(entry).labels).tolist() == [0, 1]


def test_the_version_that_made_the_first_mask_is_remembered_until_the_submission(site: Site) -> None:
    for version, model in (("0123abcd", "semantic"), ("ffff0000", "interactive")):
        site.submissions.notes.note(
            "a", {"weights_version": version, "model": model, "label_names": {"liver": 1}, "answered_by": {}}, {}
        )
    first = site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    again = site.submissions.submit("a", site.label(1, 1), {"label_names": {"liver": 1}})
    assert first is not None and again is not None
    assert (first.initial_mask_version, again.initial_mask_version) == ("0123abcd", None)
    assert first.initial_mask_origin == {"model": "semantic", "structures": ["liver"], "answered_by": {}}
    assert again.initial_mask_origin is None


def test_a_second_submission_replaces_the_first_and_both_files_are_kept(site: Site) -> None:
    first = site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    second = site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    assert first is not None and second is not None
    assert [entry.revision for entry in site.store.submissions()] == [2]
    assert dict(site.store.submissions()[0].structures) == {"liver": 1, "spleen": 2}
    assert (site.store.folder / first.raw).exists() and (site.store.folder / second.raw).exists()
    assert not (site.store.folder / first.label).exists()
    assert new_since(site.store.submissions(), [first.key]) == [second]
    same = site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    assert same is not None and (same.revision, same.key) == (2, second.key)


def test_names_are_the_same_whatever_their_case(site: Site) -> None:
    entry = site.submissions.submit("a", site.label(1, 2), {"label_names": {"LIVER": 1, "Liver ": 2}})
    assert entry is not None
    assert dict(entry.structures) == {"liver": 1}
    assert site.submissions.load(entry).mask("liver").sum() == 2 * 2 * 6 * 4


def test_new_names_can_be_refused(tmp_path: Path) -> None:
    site = Site(tmp_path / "studies", unknown=REFUSE)
    with pytest.raises(RequestError, match=r"names 'spleen'; this server accepts only its own labels: liver"):
        site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    assert site.store.submissions() == [] and site.datastore.get_labeled_images() == []
    assert site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}}) is not None


def test_labels_of_another_tag_are_stored_and_do_not_count(site: Site) -> None:
    assert site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}}, tag="draft") is None
    assert site.store.submissions() == []
    assert site.datastore.get_labels_by_image_id("a") == {"draft": "a"}


def refuse(site: Site, image: str, file: Path, info: dict[str, Any], sentence: str) -> None:
    before = site.submissions.submit("b", site.label(1), {"label_names": {"liver": 1}})
    with pytest.raises(RequestError, match=sentence):
        site.submissions.submit(image, file, info)
    assert site.store.submissions() == [before]
    assert site.datastore.get_labeled_images() == ["b"]
    assert np.unique(site.stored("b")).tolist() == [0, 1]
    assert not list((site.store.folder / "pending").iterdir())


def test_a_corrupt_file_is_refused(site: Site, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    whole = site.label(1).read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    refuse(site, "b", broken, {"label_names": {"liver": 1}}, "the label of image 'b'")


def test_an_empty_mask_is_refused(site: Site) -> None:
    refuse(site, "b", site.label(name="empty"), LIVER_AND_SPLEEN, "the label of image 'b' is empty: no voxel")


def test_a_mask_of_another_shape_is_refused(site: Site) -> None:
    file = site.label(1, name="other", shape=(12, 10, 5))
    refuse(site, "b", file, {"label_names": {"liver": 1}}, "has 12 x 10 x 5 voxels, but image 'b' has 12 x 10 x 4")


def test_values_without_a_name_are_refused(site: Site) -> None:
    refuse(site, "b", site.label(1, 4, name="two"), {"label_names": {"liver": 1}}, "nothing names the value 4")
    refuse(site, "b", site.label(1, name="one"), {}, "nothing names the value 1; expected params like")


def test_a_label_of_an_image_that_is_not_there_is_refused(site: Site) -> None:
    with pytest.raises(NotFoundError, match="image 'z' is not in this datastore"):
        site.submissions.submit("z", site.label(1), {"label_names": {"liver": 1}})


def test_a_case_whose_image_has_gone_says_so_when_it_is_needed(site: Site) -> None:
    entry = site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    assert entry is not None
    (site.folder / "a.nii.gz").unlink()
    site.datastore.refresh()
    with pytest.raises(NotFoundError, match="image 'a' is not in this datastore"):
        site.submissions.load(entry)
    assert site.submissions.reconcile().messages == []
    assert site.store.submissions() == [entry]  # it may come back


def test_submissions_of_one_case_at_once_leave_one_whole_label(site: Site) -> None:
    files = [site.label(*[1] * count, name=f"at-once-{count}") for count in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as threads:
        entries = list(
            threads.map(lambda file: site.submissions.submit("a", file, {"label_names": {"liver": 1}}), files)
        )
    final = site.store.get("a")
    assert final in entries
    assert final is not None and final.revision == 4
    assert site.submissions.load(final).mask("liver").sum() == np.count_nonzero(site.stored("a")) > 0
    assert len(list((site.store.folder / "raw").iterdir())) == 4


def test_labels_that_came_another_way_are_found_and_removed_ones_forgotten(site: Site) -> None:
    site.datastore.save_label("c", str(site.label(1, 2)), "final", dict(LIVER_AND_SPLEEN))
    site.datastore.save_label("d", str(site.label(name="empty")), "final", dict(LIVER_AND_SPLEEN))
    told = site.submissions.reconcile().messages
    assert told[0] == "the label of image 'c' was found in the datastore"
    assert told[1].startswith("the label of image 'd' is empty")
    assert [entry.image_id for entry in site.store.submissions()] == ["c"]
    assert list(site.store.rejected()) == ["d"]
    assert site.submissions.reconcile().messages == []
    site.submissions.submit("d", site.label(1, name="good"), {"label_names": {"liver": 1}})
    assert site.store.rejected() == {}
    site.datastore.remove_label("c", "final")
    assert site.submissions.reconcile().messages == ["the label of image 'c' was removed"]
    assert [entry.image_id for entry in site.store.submissions()] == ["d"]


def test_a_label_that_is_withdrawn_leaves_only_the_file_that_was_sent(site: Site) -> None:
    site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    entry = site.store.get("a")
    assert entry is not None and (site.store.folder / entry.label).exists()
    site.store.withdraw("a")
    assert site.store.get("a") is None and not list((site.store.folder / "labels").rglob("*.nii.gz"))
    assert (site.store.folder / entry.raw).exists()
    site.store.withdraw("a")


def test_a_label_submitted_during_the_reconciliation_is_neither_found_nor_forgotten(tmp_path: Path) -> None:
    """The server answers while it looks through the labels that came while it was off."""
    submitted = []

    def read(path: Path, name: str) -> MedicalImage:
        if path.name == "c.nii.gz" and not submitted:  # the reconciliation has got as far as this case
            submitted.append(site.submissions.submit("d", site.label(1, name="d"), {"label_names": {"liver": 1}}))
        return read_image(path, name)

    site = Site(tmp_path / "studies", read=read)
    site.datastore.save_label("c", str(site.label(1)), "final", {"label_names": {"liver": 1}})
    assert [entry.image_id for entry in site.submissions.reconcile().submissions] == ["c"]
    assert site.store.get("d") == submitted[0] is not None


def test_no_label_counts_as_removed_before_the_datastore_knows_all_its_labels(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's thousands of labels, and its images, become known while the reconciliation runs."""
    for name in "ab":
        site.submissions.submit(name, site.label(1), {"label_info": [{"name": "liver"}]})
    known: list[str] = []
    listings = [["a"], ["a", "b"]]  # the second one is made after the labels were asked for
    monkeypatch.setattr(site.datastore, "settle", lambda: known.append("a"))
    monkeypatch.setattr(site.datastore, "get_labeled_images", lambda: list(known))
    monkeypatch.setattr(site.datastore, "list_images", lambda: listings.pop(0))
    assert site.submissions.reconcile().messages == []
    assert {entry.image_id for entry in site.store.submissions()} == {"a", "b"}


def test_a_damaged_entry_of_the_ledger_is_rebuilt_from_the_datastore(site: Site) -> None:
    site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    (site.store.folder / "cases" / "a.json").write_text('{"image_id": "a"')
    assert site.store.submissions() == []
    assert site.submissions.reconcile().messages == ["the label of image 'a' was found in the datastore"]
    assert [entry.image_id for entry in site.store.submissions()] == ["a"]


def test_a_full_disk_is_told_and_the_old_label_counts_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    before = site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for moment in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, moment, full)
            with pytest.raises(StorageError, match="image 'a' is not stored: the disk of the server is full"):
                site.submissions.submit("a", site.label(1, 1, name="more"), {"label_names": {"liver": 1}})
        assert site.store.submissions() == [before]
    assert not list(site.store.folder.rglob("*.part"))
    entry = site.store.get("a")
    assert entry is not None
    assert site.submissions.load(entry).mask("liver").sum() == 2 * 6 * 4


@pytest.mark.parametrize("renames", range(4))
def test_a_kill_during_a_submission_loses_nothing(site: Site, renames: int) -> None:
    site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    sent = site.label(1, 1, name="more")
    submit = partial(Site(site.folder).submissions.submit, "a", sent, {"label_names": {"liver": 1}})
    assert status_of_killed(submit, renames) == -signal.SIGKILL
    restarted = Site(site.folder)
    restarted.submissions.recover()
    restarted.submissions.reconcile()
    [entry] = restarted.store.submissions()
    noted = renames > 1  # the file and the note that it has to be stored were on the disk
    assert entry.revision == (2 if noted else 1)
    assert restarted.submissions.load(entry).mask("liver").sum() == (2 if noted else 1) * 2 * 6 * 4
    assert np.count_nonzero(restarted.stored("a")) == restarted.submissions.load(entry).mask("liver").sum()
    assert not list((restarted.store.folder / "pending").glob("*.json"))


def test_a_label_that_the_datastore_refuses_is_not_stored_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client was told; stored at the next start it would undo what was submitted since."""

    def refuse(*_: object) -> str:
        raise RequestError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(site.datastore, "save_label", refuse)
        with pytest.raises(RequestError, match="does not answer"):
            site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    assert not list((site.store.folder / "pending").glob("*.json"))
    assert len(list((site.store.folder / "raw").iterdir())) == 1  # what was sent is kept


@pytest.mark.parametrize("status", [503, 507, 409])
def test_a_label_that_cannot_be_adopted_now_is_adopted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    class NotNowError(RequestError):
        """An error that passes."""

    NotNowError.status = status
    errors: list[Exception] = [NotFoundError("gone"), NotNowError("not now"), NotNowError("not now"), OSError("disk")]

    def read(path: Path, name: str) -> MedicalImage:
        if errors:
            raise errors.pop()
        return read_image(path, name)

    monkeypatch.setattr("lib.learning.submission_service.RETRY_SECONDS", 0.0)
    site = Site(tmp_path / "studies", read=read)
    site.datastore.save_label("a", str(site.label(1)), "final", {"label_names": {"liver": 1}})
    assert site.submissions.reconcile().messages == ["the label of image 'a' cannot be adopted yet: disk"]
    for _ in range(2):
        assert site.submissions.postponed() == ["a"]
        with pytest.raises(NotNowError):
            site.submissions.adopt("a")
    assert site.store.rejected() == {}
    with pytest.raises(NotFoundError):
        site.submissions.adopt("a")
    assert list(site.store.rejected()) == ["a"]  # this error says something about the label
    assert site.submissions.postponed() == []
    assert site.submissions.adopt("a") is None
    site.datastore.save_label("a", str(site.label(1, 1, name="more")), "final", {"label_names": {"liver": 1}})
    assert site.submissions.adopt("a") == site.store.get("a") is not None


def test_a_label_that_waits_to_be_adopted_is_forgotten_with_its_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, name: str) -> MedicalImage:
        raise StorageError("the disk is full")

    monkeypatch.setattr("lib.learning.submission_service.RETRY_SECONDS", 0.0)
    site = Site(tmp_path / "studies", read=read)
    site.datastore.save_label("a", str(site.label(1)), "final", {"label_names": {"liver": 1}})
    with pytest.raises(StorageError):
        site.submissions.adopt("a")
    site.submissions.withdraw("a")
    assert site.submissions.postponed() == []


def test_an_interrupted_label_does_not_undo_a_newer_one(site: Site) -> None:
    site.submissions._keep("a", site.label(1), {"label_names": {"liver": 1}}, "anna")
    newer = site.submissions.submit("a", site.label(1, 1, name="more"), {"label_names": {"liver": 1}})
    [told] = Site(site.folder).submissions.recover()
    assert "a newer one was submitted since" in told
    assert site.store.get("a") == newer
    assert not list((site.store.folder / "pending").glob("*.json"))


def test_what_a_kill_left_half_written_is_removed_after_an_hour(site: Site) -> None:
    parts = [site.store.folder / "raw" / name for name in (".old.part", ".new.part")]
    for part in parts:
        part.write_bytes(b"half")
    os.utime(parts[0], (0, 0))
    SubmissionStore(site.store.folder)
    assert [part.exists() for part in parts] == [False, True]  # the new one may belong to a submission at this moment


def test_the_folds_of_new_patients_are_of_equal_size() -> None:
    folds: dict[str, int] = {}
    for number in range(10):
        folds[f"patient{number}"] = choose_fold(f"patient{number}", folds)
    assert list(folds.values()) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert choose_fold("patient4", folds) == 1
    assert choose_fold("new", {"x": 0, "y": 0, "z": 2}) == 1


def test_all_cases_of_a_patient_are_in_one_fold(tmp_path: Path) -> None:
    site = Site(tmp_path / "studies", patients=re.compile("^([ab]?)"))  # a and b; the others have the patient ""
    for image in "acdb":
        site.submissions.submit(image, site.label(1), {"label_names": {"liver": 1}})
    assert {entry.image_id: entry.fold for entry in site.store.submissions()} == {"a": 0, "b": 2, "c": 1, "d": 1}


def test_files_with_a_split_are_read_beside_files_with_a_fold(site: Site) -> None:
    """An old file names training or validation; a hash of the patient gives its fold, and a rewrite stores that."""
    for image in "abc":
        site.submissions.submit(image, site.label(1), {"label_names": {"liver": 1}}, by="anna")
    written = site.store.get("b")
    assert written is not None
    file = site.store.folder / "cases" / "b.json"
    old = {key: value for key, value in written.to_json().items() if key != "fold"}
    file.write_text(json.dumps({**old, "side": "validation"}))
    read = site.store.get("b")
    assert read is not None and replace(read, fold=written.fold) == written
    assert read.fold == int(hashlib.sha256(b"b").hexdigest()[:12], 16) % FOLDS
    assert [entry.image_id for entry in site.store.submissions()] == ["a", "b", "c"]
    again = site.submissions.submit("b", site.label(1, 1, name="more"), {"label_names": {"liver": 1}})
    assert again is not None and again.fold == read.fold
    content = json.loads(file.read_text())
    assert content["fold"] == read.fold and "side" not in content


def test_a_fold_that_does_not_exist_is_not_read(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}})
    file = site.store.folder / "cases" / "a.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fold": 3}))
    assert site.store.get("a") is None and "expected a fold from 0 to 2, got 3" in caplog.text


def test_patients_are_found_and_a_second_label_keeps_the_fold(tmp_path: Path) -> None:
    site = Site(tmp_path / "studies", patients=re.compile("^(.)"))
    assert patient_of("patient07_frame01", {}, re.compile(r"^(patient\d+)")) == "patient07"
    assert patient_of("x", {"PatientID": " P1 "}, None) == "P1"
    assert patient_of("x", {}, re.compile(r"\d")) == "x"
    for image in "abcd":
        site.submissions.submit(image, site.label(1), {"label_names": {"liver": 1}})
    folds = {entry.image_id: entry.fold for entry in site.store.submissions()}
    assert folds == {"a": 0, "b": 1, "c": 2, "d": 0}
    site.submissions.submit("c", site.label(1, 1, name="more"), {"label_names": {"liver": 1}})
    site.submissions.submit("b", site.label(1, 1, name="another"), {"label_names": {"liver": 1}})
    assert {entry.image_id: entry.fold for entry in site.store.submissions()} == folds


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'maybe'"):
        Site(tmp_path / "studies", unknown="maybe")


def test_entries_are_readable_json(site: Site) -> None:
    site.submissions.submit("a", site.label(1), {"label_names": {"liver": 1}}, by="anna")
    content = json.loads((site.store.folder / "cases" / "a.json").read_text())
    assert content["structures"] == {"liver": 1}
    assert (content["by"], content["fold"], content["patient"]) == ("anna", 0, "a")
