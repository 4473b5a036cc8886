# SPDX-License-Identifier: Apache-2.0
"""The train task from submitted files to a published version, its progress, its report, and when it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from kprism_model.training.distributed import Workers
from lib.datastore import GuardedDatastore
from lib.errors import RequestError
from lib.files import locked
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission, SubmissionStore
from lib.learning.training_schedule import FAILED, FINISHED, RUNNING, STOPPED, TrainingLog, TrainingSchedule
from lib.learning.versions import Versions
from lib.trainers.active_learner import ActiveLearner
from lib.trainers.finetune_run import FinetuneRun
from lib.trainers.judged_scores import SETTINGS
from lib.trainers.processes import ONE_PER_GPU, process_count
from lib.trainers.progress import EPOCHS, Progress
from lib.trainers.report_figures import overlay
from lib.trainers.working_weights import WorkingWeights
from tests.tiny_network import STRUCTURES, copy_weights

QUICK = {"max_minutes": 0.1, "batch_size": 4, "learning_rate": 1e-3}


NAMES = "abcdefgh"


class Clinic:
    """Eight small volumes with labels, shipped weights, and the trainer."""

    def __init__(self, folder: Path) -> None:
        studies = folder / "studies"
        studies.mkdir()
        rng = np.random.default_rng(0)
        for name in NAMES:
            disc = np.zeros((64, 64, 3), np.uint8)
            row, column = rng.integers(20, 40, 2)
            disc[row - 10 : row + 10, column - 8 : column + 8, 1:] = 1
            image = disc * np.float32(50) + rng.normal(100, 5, disc.shape).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(image, np.diag([1.0, 1.0, 4.0, 1.0])), studies / f"{name}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(disc, np.diag([1.0, 1.0, 4.0, 1.0])), folder / f"{name}-label.nii.gz")
        shipped = copy_weights(folder / "shipped")
        self.folder = folder
        self.datastore = GuardedDatastore(str(studies), extensions=["*.nii.gz"])
        self.submissions = SubmissionService(
            SubmissionStore(folder / "intake"), self.datastore, LabelRegistry(STRUCTURES)
        )
        self.versions = Versions(folder / "versions", shipped)
        self.learner = ActiveLearner(self.submissions, self.versions, folder / "training", "cpu")

    def submit(self, *names: str, structure: str = "tumour") -> None:
        for name in names:
            self.submissions.submit(
                name, self.folder / f"{name}-label.nii.gz", {"label_names": {structure: 1}}, by="anna"
            )

    def train(self, **options: Any) -> dict[str, Any]:
        return self.learner({**QUICK, **options}, self.datastore)


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def test_a_training_publishes_a_version_and_tells_about_it(clinic: Clinic) -> None:
    clinic.submit("a", "b", "c", "d")
    stats = clinic.train()
    assert (stats["epoch"], stats["total_epochs"], stats["published"]) == (EPOCHS, EPOCHS, 1)
    assert stats["total_time"].startswith("0:0") and "current_time" not in stats
    assert re.match(
        r"published as version 1: tumour \(semantic\) 0\.\d+ \(references: 0\.\d+, provisionally\); "
        r"not enough cases to tell \(4 patients\): tumour \(in_context\), tumour \(interactive\)$",
        stats["message"],
    ), stats["message"]
    version = clinic.versions.current()
    assert version.number == 1 and version.metadata["trained_on"] == ["a", "b", "c", "d"]
    served = clinic.versions.load()
    assert served.parts[served.number].registry.names == (*STRUCTURES, "tumour")
    assert served.routes.to_json() == {"semantic": {"tumour": 1}} and served.provisional == {"semantic": ("tumour",)}
    assert version.metadata["patients"] == ["a", "b", "c", "d"] and version.metadata["kinds"] == {}
    assert version.metadata["metrics"]["semantic tumour"] > version.metadata["metrics_before"]["semantic tumour"]
    assert clinic.learner.log.read()["state"] == FINISHED
    assert clinic.learner.stats() == stats
    page = Path(stats["report"]).read_text()
    assert "published as version 1" in page and page.count("<figure>") >= 3
    assert re.search(r"<td>tumour</td><td>semantic</td><td>references</td><td class=\"number\">0\.\d+</td>", page)
    assert "new, provisional" in page
    assert page.count(">anna<") == 4
    assert not list((clinic.folder / "training" / "runs").iterdir())


def test_one_case_is_too_few_and_the_status_says_so(clinic: Clinic) -> None:
    clinic.submit("a")
    with pytest.raises(RequestError, match="training needs 2 labelled cases that can be learned from; there is 1"):
        clinic.train()
    assert clinic.learner.stats()["message"].startswith("nothing was published: training needs 2 labelled cases")
    assert clinic.learner.log.read()["state"] == FAILED


def test_two_cases_are_enough_to_learn_from(clinic: Clinic) -> None:
    clinic.submit("a", "b")
    stats = clinic.train()
    assert stats["used"] == 2 and stats["eval"]["semantic tumour"] > 0.3, stats["message"]


def test_two_cases_of_one_patient_are_learned_from_but_nothing_can_be_told(clinic: Clinic) -> None:
    for name in "ab":
        clinic.submit(name)
        entry = clinic.submissions.store.get(name)
        assert entry is not None
        clinic.submissions.store.record(replace(entry, patient="same"))
    stats = clinic.train()
    assert stats["message"].startswith("nothing changes: not enough patients to tell anything")
    assert clinic.versions.current().number == 0 and (clinic.folder / "training" / "working" / "final.json").exists()


def test_the_next_training_goes_on_from_the_last_one_and_no_fold_sees_its_patients(clinic: Clinic) -> None:
    clinic.submit("a", "b", "c")
    clinic.train()
    before = trained(clinic)
    assert before["final"]["patients"] == ["a", "b", "c"]
    assert [before[f"fold{fold}"]["patients"] for fold in range(3)] == [["b", "c"], ["a", "c"], ["a", "b"]]
    clinic.submit("d")
    clinic.train()
    assert trained(clinic)["fold0"]["patients"] == ["b", "c"]  # d is in the fold of a
    assert trained(clinic)["final"]["patients"] == ["a", "b", "c", "d"]
    serving = clinic.versions.current().number
    assert {entry["serving"] for entry in trained(clinic).values()} == {serving}


def test_a_patient_whose_label_was_removed_counts_as_seen(clinic: Clinic) -> None:
    clinic.submit("a", "b", "c", "d")
    clinic.train()
    clinic.submissions.store.withdraw("d")
    clinic.train()
    assert trained(clinic)["final"]["patients"] == ["a", "b", "c", "d"]
    patients = [trained(clinic)[f"fold{fold}"]["patients"] for fold in range(3)]
    assert patients == [["b", "c"], ["a", "c", "d"], ["a", "b", "d"]]


def test_weights_that_cannot_be_kept_do_not_hide_that_a_version_was_published(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    clinic.submit("a", "b", "c", "d")
    monkeypatch.setattr(WorkingWeights, "save", full)
    stats = clinic.train()
    assert stats["published"] == 1 and stats["message"].startswith("published as version 1")
    assert "its weights could not be kept: No space left on device" in stats["message"]


def trained(clinic: Clinic) -> dict[str, Any]:
    """The metadata of the weights that the next training goes on from, by name."""
    files = (clinic.folder / "training" / "working").glob("*.json")
    return {file.stem: json.loads(file.read_text())["metadata"] for file in files}


def test_after_a_rollback_trainings_start_from_what_serves(clinic: Clinic) -> None:
    clinic.submit("a", "b", "c")
    assert clinic.train()["published"] == 1
    clinic.versions.roll_back(0)
    run = FinetuneRun(
        clinic.versions,
        clinic.folder / "training",
        clinic.submissions.store.submissions(),
        QUICK,
        device="cpu",
        workers=Workers(),
    )
    dataset = run.build_dataset(clinic.learner._cases.get, SETTINGS)
    shipped = clinic.versions.load().shipped.model.decoder.class_content
    for _, tuner in run.finetuners(dataset):
        assert torch.equal(tuner.model.decoder.class_content[:2], shipped)


def test_with_enough_patients_a_version_is_confirmed_and_a_worse_one_changes_nothing(clinic: Clinic) -> None:
    clinic.submit(*NAMES)
    stats = clinic.train(max_minutes=0.3)
    served = clinic.versions.load()
    assert stats["published"] == 1 and served.routes.version_for("semantic", "tumour") == 1, stats["message"]
    assert not served.provisional.get("semantic"), stats["message"]
    ruined = clinic.train(max_minutes=0.01, learning_rate=1.0)
    assert ruined["published"] is None and "an earlier version is better: tumour (semantic)" in ruined["message"]
    assert clinic.versions.current().number == 1


def test_labels_that_cannot_be_used_are_skipped_with_their_reason(clinic: Clinic) -> None:
    clinic.submit("a", "b", "c", "d")
    (clinic.folder / "studies" / "b.nii.gz").unlink()
    clinic.datastore.refresh()
    entry = clinic.submissions.store.get("d")
    assert entry is not None
    (clinic.folder / "intake" / entry.label).write_bytes(b"broken")
    (clinic.folder / "studies" / "c.nii.gz").unlink()
    clinic.datastore.refresh()
    with pytest.raises(RequestError, match=r"there is 1 .*image 'b' is not in this datastore"):
        clinic.train()
    assert "the kept label of image 'd'" in clinic.learner.stats()["message"]
    nibabel.save(nibabel.load(clinic.folder / "studies" / "a.nii.gz"), clinic.folder / "studies" / "c.nii.gz")
    nibabel.save(nibabel.load(clinic.folder / "studies" / "a.nii.gz"), clinic.folder / "studies" / "b.nii.gz")
    clinic.datastore.refresh()
    stats = clinic.train()
    assert list(stats["skipped"]) == ["d"] and (stats["found"], stats["used"]) == (4, 3)


def test_options_are_checked(clinic: Clinic) -> None:
    with pytest.raises(RequestError, match="option max_minutes is 'long'; expected a number"):
        clinic.learner({"max_minutes": "long"}, clinic.datastore)
    assert clinic.learner.config()["max_minutes"] == 1.5 and clinic.learner.config()["in_context"] is True


def test_a_training_that_was_killed_says_what_it_was_doing(clinic: Clinic) -> None:
    folder = clinic.folder / "training"
    with locked(folder):
        Progress(folder).begin("reading labels", found=3)
        assert clinic.learner.stats()["message"] == "reading labels"
    assert clinic.learner.stats()["message"] == "it was cut off while reading labels"


def test_the_number_of_processes_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [process_count(wanted, "cuda") for wanted in (ONE_PER_GPU, 1, 2)] == [4, 1, 2]
    assert [process_count(wanted, "cpu") for wanted in (ONE_PER_GPU, 2)] == [1, 2]
    assert process_count(2, "cuda:1") == 1


class Scheduled:
    """A schedule with a ward of submissions and a training that is started by hand."""

    def __init__(self, folder: Path) -> None:
        self.log = TrainingLog(folder)
        self.keys: list[str] = []
        self.status: str | None = None
        self.started = 0
        self.thorough: list[bool] = []
        self.begins = True
        self.schedule = self.every(3)

    def every(self, labels: int) -> TrainingSchedule:
        """A schedule that starts a training after so many labels."""
        return TrainingSchedule(
            self.log,
            self.submissions,
            start=self.start,
            options=lambda thorough: {"in_context": thorough},
            status=lambda: self.status,
            every=labels,
        )

    def submissions(self) -> list[Submission]:
        return [Submission(key, key, 0, {"a": 1}, "", "", "", f"{key}!", "", 0.0) for key in self.keys]

    def start(self, options: Mapping[str, Any]) -> None:
        self.started += 1
        self.thorough.append(options["in_context"])
        self.status = "RUNNING"
        if self.begins:
            submissions = self.log.resumed(self.submissions(), options)
            self.log.begin([submission.key for submission in submissions], options)

    def end(self, state: str, status: str) -> None:
        if state != RUNNING:
            self.log.end(state)
        self.status = status


def test_training_is_due_after_so_many_new_labels_and_runs_once(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    ward.keys = ["a", "b"]
    assert not ward.schedule.poll()
    ward.keys += ["c"]
    assert ward.schedule.poll() and not ward.schedule.poll()
    ward.keys += ["d", "e", "f", "g"]  # while it runs
    assert not ward.schedule.poll() and ward.schedule.pending() == 4
    ward.end(FINISHED, "DONE")
    assert ward.schedule.poll() and ward.started == 2
    ward.end(FINISHED, "DONE")
    assert not ward.schedule.poll() and ward.schedule.pending() == 0


def test_a_training_that_was_killed_is_taken_up_again_but_not_for_ever(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    ward.keys = ["a", "b", "c"]
    for attempt in (1, 2, 3):
        assert ward.schedule.poll()
        assert ward.log.read()["attempts"] == attempt
        ward.end(RUNNING, "ERROR")
    assert not ward.schedule.poll()
    assert ward.log.read()["state"] == FAILED
    ward.keys += ["d", "e", "f"]  # another training: on all labels, and with attempts of its own
    assert ward.schedule.poll() and ward.started == 4
    assert len(ward.log.read()["cases"]) == 6 and ward.log.read()["attempts"] == 1


def test_a_killed_training_goes_on_with_its_options_and_its_labels(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    ward.keys = [f"c{number}" for number in range(12)]
    ward.schedule.poll()
    ward.keys += ["later"]
    ward.end(RUNNING, "ERROR")
    assert ward.schedule.poll() and ward.thorough == [True, True]
    assert len(ward.log.read()["cases"]) == 12 and ward.log.read()["attempts"] == 2
    ward.end(FINISHED, "DONE")
    assert ward.log.read()["thorough"] == 12 and ward.schedule.pending() == 1


def test_a_thorough_training_that_failed_is_made_up_for(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    ward.keys = [f"c{number}" for number in range(12)]
    ward.schedule.poll()
    ward.end(FAILED, "ERROR")
    ward.keys += ["d", "e", "f"]
    assert ward.schedule.poll() and ward.thorough == [True, True]


def test_a_training_by_hand_that_was_killed_goes_on_too(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    ward.keys = ["a", "b"]
    ward.start({"in_context": False})
    ward.end(RUNNING, "ERROR")
    assert ward.every(0).poll() and ward.started == 2


@pytest.mark.parametrize(("status", "starts"), [("ERROR", 3), ("STOPPED", 1)])
def test_a_training_that_ends_before_it_has_begun_is_not_started_for_ever(
    tmp_path: Path, status: str, starts: int
) -> None:
    ward = Scheduled(tmp_path)
    ward.begins = False
    ward.keys = ["a", "b", "c"]
    for _ in range(6):
        ward.schedule.poll()
        ward.status = status
    assert ward.started == starts and ward.schedule.pending() == 0
    ward.keys += ["d", "e", "f"]
    ward.begins = True
    assert ward.schedule.poll() and len(ward.log.read()["cases"]) == 6


def test_a_training_that_somebody_stopped_stays_stopped(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    ward.keys = ["a", "b", "c"]
    ward.schedule.poll()
    ward.end(RUNNING, "STOPPED")
    assert not ward.schedule.poll()
    assert ward.log.read()["state"] == STOPPED
    ward.keys += ["d", "e", "f"]
    assert ward.schedule.poll()


def test_with_every_zero_training_is_started_by_hand_only(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    ward.keys = list("abcdefgh")
    assert not ward.every(0).poll()
    with pytest.raises(ValueError, match="got -1"):
        ward.every(-1)


def test_one_label_alone_starts_no_training(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    schedule = ward.every(1)
    ward.keys = ["a"]
    assert not schedule.poll()
    ward.keys += ["b"]
    assert schedule.poll()


def test_every_ten_labels_a_training_is_thorough(tmp_path: Path) -> None:
    ward = Scheduled(tmp_path)
    for number in range(24):
        ward.keys += [f"c{number}"]
        if ward.schedule.poll():
            ward.end(FINISHED, "DONE")
    assert ward.thorough == [False, False, False, True] * 2


def test_a_training_that_starts_by_itself_is_short_or_thorough(clinic: Clinic) -> None:
    assert clinic.learner.request(thorough=False) == {"max_minutes": 1.5, "in_context": False}
    assert clinic.learner.request(thorough=True) == {"max_minutes": 4.5, "in_context": True}


def test_pictures_show_both_outlines() -> None:
    truth = np.zeros((32, 48), bool)
    truth[8:20, 8:20] = True
    prediction = np.roll(truth, 16, axis=1)
    picture = overlay(np.full((32, 48), 0.5, np.float32), truth, prediction)
    assert picture.shape == (171, 256, 3)
    green, red = ((picture == colour).all(-1).any(0) for colour in ((90, 220, 120), (255, 90, 70)))
    assert np.flatnonzero(green)[0] == pytest.approx(8 * 256 / 48, abs=2)
    assert np.flatnonzero(red)[0] == pytest.approx(24 * 256 / 48, abs=2)
