# SPDX-License-Identifier: Apache-2.0
"""The store of submitted labels: which label of a case counts, who submitted it, and which fold the case is in.

Each case has one JSON file in `cases/`. It names the label in `labels/` (our own numbering, on the image's grid) and
the file as it was sent, in `raw/`. `raw/` keeps every file that was ever sent. The JSON is written last, so a case has
either its old label or its new one. `rejected.json` lists stored labels that cannot be used, with the reason.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lib.files import locked, read_json, remove_parts, write_json
from lib.learning.annotation_notes import Prompts, prompts_from_json
from lib.learning.changed_files import ChangedFile, ChangedFiles

logger = logging.getLogger(__name__)

FOLDS = 3
"""Folds of the cross-validation over patients."""

_PARTIAL_FILE_SECONDS = 3600.0  # a partial file that is older than this was left by a kill

_JSON_KEYS = {"initial_mask_version": "first_mask", "initial_mask_origin": "first_mask_origin"}
"""Fields of `Submission` that have another name in the JSON files: files of all versions of the app are alike."""

_LATER_KEYS = {"first_mask_origin", "prompts", "inputs", "image", "image_revision", "warnings", "sent_names"}
"""Keys that files of earlier versions of the app lack."""


@dataclass(frozen=True)
class Submission:
    """The label of one case that counts.

    `fold` (0 .. FOLDS - 1) is the same for all cases of a patient. `structures`: name -> value in the file `label`.
    `label` and `raw` (the file as it was sent) are paths relative to the store's folder. `sha256` is the checksum
    of the file as it was sent, `content` that of the labelled voxels and their names. `by` and `at` (seconds since
    1970): who submitted it, and when. `initial_mask_version`: the version of the weights that made the mask which
    the annotator corrected, None if it is not known. `initial_mask_origin`: the `model` that made it, its
    `structures`, and `answered_by` if the answer said it. `prompts`: the clicks and scribbles of each structure, by
    the slices of the case as it is read (`AnnotatedCase`). `revision` counts the different labels of this case from
    1. `inputs` is a digest of all that the label was read by (see `LabelReader.inputs`), `image` that of its image;
    both are empty in old files. `image_revision` counts how often the image was replaced. `warnings` say what of the
    file is not in the label. `sent_names`: what a client said about the names of the file's values, as it said it.
    """

    image_id: str
    patient: str
    fold: int
    structures: Mapping[str, int]
    label: str
    raw: str
    sha256: str
    content: str
    by: str
    at: float
    initial_mask_version: str | None = None
    revision: int = 1
    initial_mask_origin: Mapping[str, Any] | None = None
    prompts: Prompts = field(default_factory=dict)
    inputs: str = ""
    image: str = ""
    image_revision: int = 0
    warnings: Sequence[str] = ()
    sent_names: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Changes whenever the case has another label or another image."""
        replaced = f":{self.image_revision}" if self.image_revision else ""
        return f"{self.image_id}:{self.content[:16]}{replaced}"

    def to_json(self) -> dict[str, Any]:
        """The object in the case's JSON file."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Submission:
        """From the object in a case's JSON file; ValueError if a key is missing or unknown, or the fold is.

        A file from before the cross-validation has the key `side` (training or validation) instead of `fold`: there a
        hash of the patient gives the fold.
        """
        keys = {_JSON_KEYS.get(field.name, field.name): field.name for field in fields(cls)}
        found = dict(content)
        if "fold" not in found and found.pop("side", None) is not None:
            found["fold"] = _hashed_fold(str(found.get("patient")))
        if not set(keys) - _LATER_KEYS <= set(found) <= set(keys):
            raise ValueError(f"a submission has the keys {', '.join(keys)}; got {', '.join(content)}")
        if found["fold"] not in range(FOLDS):
            raise ValueError(f"expected a fold from 0 to {FOLDS - 1}, got {found['fold']!r}")
        if "prompts" in found:
            found["prompts"] = prompts_from_json(found["prompts"])
        found["warnings"] = tuple(found.get("warnings", ()))
        return cls(**{keys[key]: value for key, value in found.items()})


class SubmissionStore:
    """The submissions in `folder`. Any number of processes may read them; writers take turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cases = ChangedFiles(folder / "cases", self._read)
        self._rejected = ChangedFile(folder / "rejected.json", lambda path: self._read_object(path) or {})
        for part in ("cases", "labels", "raw", "pending"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            remove_parts(folder / part, age=_PARTIAL_FILE_SECONDS)

    def submissions(self) -> list[Submission]:
        """All cases with a label, sorted by id. A damaged file is skipped with a warning.

        Files are read again only if they were added or replaced.
        """
        return self._cases.contents()

    def get(self, image_id: str) -> Submission | None:
        """The label that counts for a case, or None."""
        path = self._entry(image_id)
        return self._read(path) if path.exists() else None

    def record(self, submission: Submission) -> Submission:
        """Make `submission` the label that counts. Its fold and revisions are set here; the fold never changes."""
        with locked(self.folder):
            before = self.get(submission.image_id)
            others = [entry for entry in self.submissions() if entry.image_id != submission.image_id]
            fold = choose_fold(submission.patient, {entry.patient: entry.fold for entry in others})
            if before is not None and before.patient == submission.patient:
                fold = before.fold
            revision = 1 if before is None else before.revision + int(before.content != submission.content)
            images = 0 if before is None else before.image_revision + int(_is_image_new(before, submission))
            entry = replace(submission, fold=fold, revision=revision, image_revision=images)
            write_json(self._entry(entry.image_id), entry.to_json())
            if before is not None and before.label != entry.label:
                (self.folder / before.label).unlink(missing_ok=True)
            self._remove_rejection(entry.image_id)
        return entry

    def note_inputs(self, submission: Submission, inputs: str, names: Mapping[str, Any]) -> None:
        """Note what a label that counts was read by, and what named its values, unless another one counts since."""
        with locked(self.folder):
            if self.get(submission.image_id) == submission:
                noted = replace(submission, inputs=inputs, sent_names=names)
                write_json(self._entry(submission.image_id), noted.to_json())

    def withdraw(self, image_id: str) -> None:
        """Remove the label of a case. The files that were sent stay."""
        with locked(self.folder):
            before = self.get(image_id)
            self._entry(image_id).unlink(missing_ok=True)
            if before is not None:
                (self.folder / before.label).unlink(missing_ok=True)
            self._remove_rejection(image_id)

    def reject(self, image_id: str, sha256: str, reason: str, inputs: str = "") -> None:
        """Record that a stored label cannot be used, read by `inputs`. An earlier label of the case still counts."""
        entry = {"sha256": sha256, "reason": reason, "inputs": inputs}
        with locked(self.folder):
            write_json(self.folder / "rejected.json", {**self.rejected(), image_id: entry})

    def accept(self, image_id: str) -> None:
        """Forget that the stored label of an image could not be used: what counts is read from it."""
        if image_id in self.rejected():
            with locked(self.folder):
                self._remove_rejection(image_id)

    def rejected(self) -> dict[str, dict[str, str]]:
        """Image id -> SHA-256 of the stored label, why it cannot be used, and what it was read by."""
        return dict(self._rejected.content())

    def _remove_rejection(self, image_id: str) -> None:
        rejected = self.rejected()
        if rejected.pop(image_id, None) is not None:
            write_json(self.folder / "rejected.json", rejected)

    def _entry(self, image_id: str) -> Path:
        return self.folder / "cases" / f"{image_id}.json"

    def _read(self, path: Path) -> Submission | None:
        try:
            return Submission.from_json(self._read_object(path) or {})
        except ValueError as error:
            logger.warning("%s is not a submission and is skipped: %s", path, error)
            return None

    @staticmethod
    def _read_object(path: Path) -> dict[str, Any] | None:
        try:
            return read_json(path)
        except ValueError as error:
            logger.warning("%s", error)
            return None


def choose_fold(patient: str, folds: Mapping[str, int]) -> int:
    """The fold of a patient's cases: that of earlier cases, else the one with the fewest patients so far.

    `folds` are those of the patients so far. The first three patients fill three folds, as a random choice would not.
    """
    if patient in folds:
        return folds[patient]
    return min(range(FOLDS), key=list(folds.values()).count)


def _is_image_new(before: Submission, after: Submission) -> bool:
    """Whether an image was replaced between two labels of it; files of earlier versions of the app do not know it."""
    return bool(before.image or before.inputs) and bool(after.image) and before.image != after.image


def _hashed_fold(patient: str) -> int:
    return int(hashlib.sha256(patient.encode()).hexdigest()[:12], 16) % FOLDS


def patient_of(image_id: str, info: Mapping[str, Any], pattern: re.Pattern[str] | None) -> str:
    """The patient in an image: its PatientID, else the match of `pattern` in the id, else the id itself."""
    if isinstance(info.get("PatientID"), str) and info["PatientID"].strip():
        return str(info["PatientID"]).strip()
    match = pattern.search(image_id) if pattern else None
    return (match[1] if match.re.groups else match[0]) if match else image_id


def new_since(submissions: Collection[Submission], trained_on: Collection[str]) -> list[Submission]:
    """The submissions whose keys are not in `trained_on`."""
    known = set(trained_on)
    return [submission for submission in submissions if submission.key not in known]
