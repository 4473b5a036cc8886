# SPDX-License-Identifier: Apache-2.0
"""Submitting a label: from a label file to a case that is a reference and training data.

A label is checked first. One that cannot be used is refused with a message, and nothing changes. Then the file is kept
as it was sent, with a JSON file in `pending/`; then MONAI Label's datastore stores it; then the submission store
records it. After a kill in between, `recover` finishes what is in `pending/`. `reconcile` finds labels that reached the
datastore in another way (a DICOM SEG, a file put there by hand).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from kprism_model.classes import clean_name
from kprism_model.data.partial import AnnotatedCase
from lib.datastore import GuardedDatastore
from lib.errors import RETRY_SECONDS, RequestError, StorageError, is_passing
from lib.files import is_disk_full
from lib.image_files import state_path
from lib.imaging.label_names import listed_names, sent_names
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import files_of, read_image, suffix_of
from lib.labelled_cases import labelled_ids
from lib.learning.annotation_notes import AnnotationNotes, Prompts, merged
from lib.learning.pending_submission import PendingSubmission, digest_of
from lib.learning.read_again import read_again, write_label
from lib.learning.submission_store import Submission, SubmissionStore, patient_of
from lib.learning.submitted_label import ADD, LabelReader, SubmittedLabel

logger = logging.getLogger(__name__)

_FOUND = "was found in the datastore"


class Reconciliation(NamedTuple):
    """New submissions from the datastore, and a message for each label that is new, removed or cannot be used."""

    submissions: list[Submission]
    messages: list[str]


class SubmissionService:
    """Submits labels and gives back their cases.

    `unknown` ("add" or "refuse"): what happens when a label names a new structure. `patients` is a pattern that finds
    the patient in an image id if the datastore does not know the patient. `notes`: what was answered about each image
    since its last submission.
    """

    def __init__(
        self,
        store: SubmissionStore,
        datastore: Datastore,
        label_registry: LabelRegistry,
        *,
        unknown: str = ADD,
        patients: re.Pattern[str] | None = None,
        read: Callable[[Path, str], MedicalImage] = read_image,
    ) -> None:
        self.store, self.datastore = store, datastore
        self._label_registry, self._patients = label_registry, patients
        self._reader = LabelReader(datastore, label_registry, unknown=unknown, read=read)
        self.notes = AnnotationNotes()
        self._storing = Lock()
        self._postponed: dict[str, float] = {}  # image id -> when to try its label again

    def patient(self, image_id: str) -> str:
        """The patient in an image, as far as known."""
        return patient_of(image_id, self.datastore.get_image_info(image_id) or {}, self._patients)

    def submit(
        self, image_id: str, file: Path, info: Mapping[str, Any], *, tag: str = DefaultLabelTag.FINAL, by: str = ""
    ) -> Submission | None:
        """Submit a label. Returns the submission, or None if the tag is not `final`.

        RequestError, and nothing changes, if the image does not exist, the file cannot be read, the shape is not the
        image's, no voxel is labelled, names do not fit the values, or a new name is refused.
        """
        if tag != DefaultLabelTag.FINAL:
            self.datastore.save_label(image_id, str(file), tag, dict(info))
            return None
        label, patient = self._reader.read(image_id, file, info, is_sent=True), self.patient(image_id)
        try:
            pending = self._keep(image_id, file, info, by)
        except OSError as error:
            raise _storage_error(image_id, error) from error
        try:
            return self._save(pending, label, patient)
        except RequestError:  # the client has the error and still has the label; a later retry could undo a newer one
            pending.remove()
            raise

    def adopt(self, image_id: str) -> Submission | None:
        """Submit the label that the datastore holds for an image, unless the store has it already.

        One that the store has, or has rejected, is read again if what names its values, its image or a setting changed.

        RequestError as in `submit`; the reason is recorded, and an earlier label of the case still counts. After an
        error that may pass the label is `postponed` instead: nothing says that it cannot be used.
        """
        try:
            submission = self._adopt(image_id)
        except (RequestError, OSError) as error:
            if is_passing(error):
                self._postponed[image_id] = time.monotonic() + RETRY_SECONDS
            raise
        self._postponed.pop(image_id, None)
        return submission

    def postponed(self) -> list[str]:
        """Ids of the images whose labels should be adopted again now: an error that may pass kept them out."""
        now = time.monotonic()
        return [image_id for image_id, due in list(self._postponed.items()) if due <= now]

    def _adopt(self, image_id: str) -> Submission | None:
        label_id = self.datastore.get_label_by_image_id(image_id, DefaultLabelTag.FINAL)
        file = Path(self.datastore.get_label_uri(label_id, DefaultLabelTag.FINAL))
        info = self.datastore.get_label_info(label_id, DefaultLabelTag.FINAL) or {}
        digest, patient = digest_of(file), self.patient(image_id)
        before, rejected = self.store.get(image_id), self.store.rejected().get(image_id, {})
        if before is not None and before.sha256 == digest and before.sent_names and not listed_names(info):
            self.datastore.update_label_info(
                label_id, DefaultLabelTag.FINAL, dict(before.sent_names)
            )  # its index is new
            info = {**info, **before.sent_names}
        inputs = self._reader.inputs(image_id, file, digest, info, patient)
        if rejected.get("sha256") == digest and rejected.get("inputs") == inputs:
            return None
        is_known = before is not None and before.sha256 == digest
        if before is not None and is_known and (before.inputs == inputs or _is_safe(before, info)):
            self.store.accept(image_id)
            if not before.inputs or before.sent_names != sent_names(info):
                self.store.note_inputs(before, inputs, sent_names(info))
            return None
        try:
            label = self._reader.read(image_id, file, info)
        except RequestError as error:
            if not error.is_passing:
                self._postponed.pop(image_id, None)
                self.store.reject(image_id, digest, str(error), inputs)
            raise
        if before is not None and is_known:
            return self._read_again(before, label, patient, inputs, sent_names(info))
        pending = self._keep(image_id, file, info, str(info.get("client_id") or ""))
        with self._storing:
            if self.store.get(image_id) != before:  # another label was submitted in the meantime
                pending.remove()
                return None
            try:
                return self._record(pending, label, patient)
            except OSError:  # the datastore has the label, which is adopted again
                pending.remove()
                raise

    def _read_again(
        self, before: Submission, label: SubmittedLabel, patient: str, inputs: str, names: Mapping[str, Any]
    ) -> Submission | None:
        """Record what a label that counts says now that its names, its image or settings have changed.

        None if it says the same.
        """
        with self._storing:
            if self.store.get(before.image_id) != before:  # another label was submitted in the meantime
                return None
            self._label_registry.add(label.structures)
            after = read_again(self.store.folder, before, label, patient, inputs)
            entry = self.store.record(replace(after, sent_names=names))
        return entry if entry.key != before.key or patient != before.patient else None

    def recover(self) -> list[str]:
        """Finish the submissions that a kill interrupted; returns a message for each."""
        messages = [self._recover(path) for path in PendingSubmission.paths(self.store.folder)]
        for message in messages:
            logger.warning("%s", message)
        return messages

    def _recover(self, path: Path) -> str:
        try:
            pending = PendingSubmission.read(path)
        except ValueError as error:
            path.unlink(missing_ok=True)
            return f"an interrupted submission cannot be finished: {error}"
        raw = self.store.folder / pending.raw
        newer = self.store.get(pending.image_id)
        if newer is not None and newer.at > pending.at:
            pending.remove()
            return f"the label in {raw}, interrupted before, is left out: a newer one was submitted since"
        try:
            label = self._reader.read(pending.image_id, raw, pending.info)
            self._save(pending, label, self.patient(pending.image_id))
        except RequestError as error:
            if error.is_passing:  # the datastore is down: the next start tries again
                return f"the label in {raw}, interrupted before, cannot be stored yet: {error}"
            pending.remove()
            return f"the label in {raw}, interrupted before, cannot be used: {error}"
        return f"the label of image {pending.image_id!r}, interrupted before, is stored now"

    def reconcile(self) -> Reconciliation:
        """Submit the labels that only the datastore has, and withdraw those that it no longer has.

        Labels that are submitted meanwhile are neither added nor withdrawn.
        """
        submissions: list[Submission] = []
        messages: list[str] = []
        before = self.store.submissions()  # first, because a label reaches the datastore before the store
        if isinstance(self.datastore, GuardedDatastore):
            self.datastore.settle()
        images = set(self.datastore.list_images())
        labelled = labelled_ids(self.datastore)
        known = {entry.image_id: entry.sha256 for entry in before}
        for image_id in labelled:
            try:
                if (submission := self.adopt(image_id)) is not None:
                    submissions.append(submission)
                    is_same = known.get(image_id) == submission.sha256
                    how = "was read again, because its names, image or settings changed" if is_same else _FOUND
                    messages.append(f"the label of image {image_id!r} {how}")
            except RequestError as error:
                messages.append(str(error))
            except OSError as error:  # of one label; the others are not lost for it
                messages.append(f"the label of image {image_id!r} cannot be adopted yet: {error}")
        if isinstance(self.datastore, LocalDatastore):  # a folder lists all its labels, a server may fail to
            removed = images.intersection(self.datastore.list_images()) - set(labelled)
            messages += self._withdraw([entry for entry in before if entry.image_id in removed])
        for message in messages:
            logger.info("%s", message)
        return Reconciliation(submissions, messages)

    def _withdraw(self, submissions: list[Submission]) -> list[str]:
        """Withdraw submissions that have not changed; returns a message for each."""
        unchanged = [entry for entry in submissions if self.store.get(entry.image_id) == entry]
        for entry in unchanged:
            self.withdraw(entry.image_id)
        return [f"the label of image {entry.image_id!r} was removed" for entry in unchanged]

    def withdraw(self, image_id: str) -> None:
        """Remove the label of an image from the store."""
        self._postponed.pop(image_id, None)
        self.store.withdraw(image_id)

    def load(self, submission: Submission) -> AnnotatedCase:
        """The case of a submission; RequestError if the image is gone or a file is damaged."""
        return self._reader.read_case(submission, self.store.folder / submission.label)

    def files(self, submission: Submission) -> list[Path]:
        """Files that change whenever what `load` reads does; RequestError if the image is gone."""
        return [*files_of(state_path(self.datastore, submission.image_id)), self.store.folder / submission.label]

    def _keep(self, image_id: str, file: Path, info: Mapping[str, Any], by: str) -> PendingSubmission:
        return PendingSubmission.create(self.store.folder, image_id, file, info, by, self.notes.of(image_id))

    def _save(self, pending: PendingSubmission, label: SubmittedLabel, patient: str) -> Submission:
        """Store a kept file in the datastore and record it, one submission at a time."""
        raw = self.store.folder / pending.raw
        try:
            with self._storing:
                self.datastore.save_label(pending.image_id, str(raw), DefaultLabelTag.FINAL, dict(pending.info))
                return self._record(pending, label, patient)
        except OSError as error:
            pending.remove()
            raise _storage_error(pending.image_id, error) from error

    def _record(self, pending: PendingSubmission, label: SubmittedLabel, patient: str) -> Submission:
        """Write the label as it is used and record the submission."""
        raw = Path(pending.raw)
        path = f"labels/{raw.name.removesuffix(suffix_of(raw))}.nii.gz"
        write_label(self.store.folder / path, label)
        self._label_registry.add(label.structures)
        for warning in label.warnings:
            logger.warning("The label of image %r: %s", pending.image_id, warning)
        submission = self.store.record(
            Submission(
                image_id=pending.image_id,
                patient=patient,
                fold=0,
                structures=label.structures,
                label=path,
                raw=pending.raw,
                sha256=pending.sha256,
                content=label.digest(),
                by=pending.by,
                at=pending.at,
                initial_mask_version=pending.note.initial_mask_version,
                initial_mask_origin=pending.note.initial_mask_origin,
                prompts=self._prompts(pending, label),
                inputs=self._reader.inputs(
                    pending.image_id, self.store.folder / raw, pending.sha256, pending.info, patient
                ),
                image=label.image.digest,
                warnings=label.warnings,
                sent_names=sent_names(pending.info),
            )
        )
        pending.remove()
        self.notes.remove(pending.image_id)
        return submission

    def _prompts(self, pending: PendingSubmission, label: SubmittedLabel) -> Prompts:
        """The prompts of the structures in a label: those noted since the case's last label, and those of that label.

        The earlier ones are left out if the image holds several volumes: another volume may be labelled now.
        """
        noted = {self._label_registry.canonical(name): slices for name, slices in pending.note.prompts.items()}
        prompts = label.on_case(noted)
        before = self.store.get(pending.image_id)
        if before is not None and label.image.volumes == 1:
            prompts = merged(before.prompts, prompts)
        return {name: slices for name, slices in prompts.items() if name in label.structures and slices}


def _is_safe(before: Submission, info: Mapping[str, Any]) -> bool:
    """Whether a label of an earlier version of the app, which did not note the inputs, can have lost no name."""
    return (
        not before.inputs and bool(listed_names(info)) and all(clean_name(name) == name for name in before.structures)
    )


def _storage_error(image_id: str, error: OSError) -> StorageError:
    reason = "the disk of the server is full" if is_disk_full(error) else f"the server cannot write it ({error})"
    return StorageError(f"the label of image {image_id!r} is not stored: {reason}")
