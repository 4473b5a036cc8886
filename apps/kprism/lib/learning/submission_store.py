# SPDX-License-Identifier: Apache-2.0
"""The ledger of submitted labels: what was submitted for which case, by whom, and on which side of the split it stands.

One JSON file a case, in `cases/`, names the case's label in `labels/` (our own numbering, on the image's grid) and the
file as it was sent, in `raw/`, where every one that was ever sent is kept. The JSON is written last, so a case has
either its old label or its new one. `rejected.json` says which stored labels could not be used, and why.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lib.files import locked, read_json, remove_parts, write_json

logger = logging.getLogger(__name__)

TRAINING, VALIDATION = "training", "validation"
"""The sides of the split."""

VALIDATION_SHARE = 0.2
"""Share of the patients that are kept for validation."""

_ABANDONED = 3600.0  # seconds after which nobody is still writing a file
_SETTLED = 2_000_000_000  # nanoseconds after which a folder's time of change tells of every further change


@dataclass(frozen=True)
class Submission:
    """The label of one case that counts.

    `structures`: name -> value in the file `label` (relative to the ledger's folder, as is `raw`, the file as sent).
    `sha256` is that of the file as sent, `content` that of the labelled voxels and their names. `by` and `at` (seconds
    since 1970): who submitted it, and when; `first_mask`: version of the weights that made the mask which was
    corrected, None if it is not known. `revision` counts the different labels of this case from 1.
    """

    image_id: str
    patient: str
    side: str
    structures: Mapping[str, int]
    label: str
    raw: str
    sha256: str
    content: str
    by: str
    at: float
    first_mask: str | None = None
    revision: int = 1

    @property
    def key(self) -> str:
        """Changes whenever the case has another label."""
        return f"{self.image_id}:{self.content[:16]}"


class SubmissionStore:
    """The files of the ledger in `folder`; any number of processes may read it, writers take turns."""

    def __init__(self, folder: Path, *, validation_share: float = VALIDATION_SHARE) -> None:
        if not 0 <= validation_share < 1:
            raise ValueError(f"the share of patients for validation must lie in [0, 1), got {validation_share}")
        self.folder = folder
        self._share = validation_share
        self._known: tuple[int, list[Submission]] | None = None
        for part in ("cases", "labels", "raw", "pending"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            remove_parts(folder / part, age=_ABANDONED)

    def submissions(self) -> list[Submission]:
        """All cases with a label, in the order of their ids; a damaged entry is left out with a warning.

        The files are read again only if one was added, exchanged or removed.
        """
        changed = (self.folder / "cases").stat().st_mtime_ns
        if self._known is not None and self._known[0] == changed:
            return list(self._known[1])
        found = [entry for entry in map(self._read, sorted(self._files())) if entry is not None]
        if time.time_ns() - changed > _SETTLED:  # a later change may have the same time of change
            self._known = changed, found
        return list(found)

    def get(self, image_id: str) -> Submission | None:
        """The label of a case that counts, or None."""
        path = self._entry(image_id)
        return self._read(path) if path.exists() else None

    def record(self, submission: Submission) -> Submission:
        """Make `submission` the label that counts; its side and revision are filled in here, once and for all."""
        with locked(self.folder):
            before = self.get(submission.image_id)
            others = [entry for entry in self.submissions() if entry.image_id != submission.image_id]
            side = choose_side(submission.patient, {entry.patient: entry.side for entry in others}, self._share)
            if before is not None and before.patient == submission.patient:
                side = before.side
            revision = 1 if before is None else before.revision + int(before.content != submission.content)
            entry = Submission(**{**asdict(submission), "side": side, "revision": revision})
            write_json(self._entry(entry.image_id), asdict(entry))
            if before is not None and before.label != entry.label:
                (self.folder / before.label).unlink(missing_ok=True)
            self._forget_rejection(entry.image_id)
        return entry

    def withdraw(self, image_id: str) -> None:
        """The case has no label any more; the files that were sent stay."""
        with locked(self.folder):
            self._entry(image_id).unlink(missing_ok=True)
            self._forget_rejection(image_id)

    def reject(self, image_id: str, sha256: str, reason: str) -> None:
        """Remember that a stored label cannot be used; an earlier one of the case counts on."""
        with locked(self.folder):
            write_json(
                self.folder / "rejected.json", {**self.rejected(), image_id: {"sha256": sha256, "reason": reason}}
            )

    def rejected(self) -> dict[str, dict[str, str]]:
        """Image id -> SHA-256 of the stored label and the sentence why it cannot be used."""
        return self._read_object(self.folder / "rejected.json") or {}

    def _forget_rejection(self, image_id: str) -> None:
        rejected = self.rejected()
        if rejected.pop(image_id, None) is not None:
            write_json(self.folder / "rejected.json", rejected)

    def _files(self) -> list[Path]:
        return [path for path in (self.folder / "cases").glob("*.json") if not path.name.startswith(".")]

    def _entry(self, image_id: str) -> Path:
        return self.folder / "cases" / f"{image_id}.json"

    def _read(self, path: Path) -> Submission | None:
        content = self._read_object(path)
        if content is None or set(content) != {field.name for field in fields(Submission)}:
            logger.warning("%s is no entry of the ledger and left out", path)
            return None
        return Submission(**content)

    @staticmethod
    def _read_object(path: Path) -> dict[str, Any] | None:
        try:
            return read_json(path)
        except ValueError as error:
            logger.warning("%s", error)
            return None


def choose_side(patient: str, sides: Mapping[str, str], share: float = VALIDATION_SHARE) -> str:
    """The side of a patient's cases: that of earlier ones, else by the hash of the patient.

    With few patients the hash alone might leave a side empty, so the first one trains, and if the third comes while
    nobody validates, that one does (unless `share` is 0). What is chosen here is kept in the ledger for good.
    """
    if patient in sides:
        return sides[patient]
    taken = list(sides.values())
    if TRAINING not in taken:
        return TRAINING
    wants_validation = int(hashlib.sha256(patient.encode()).hexdigest()[:12], 16) < share * 16**12
    alone = share > 0 and VALIDATION not in taken and len(taken) >= 2
    return VALIDATION if wants_validation or alone else TRAINING


def patient_of(image_id: str, info: Mapping[str, Any], pattern: re.Pattern[str] | None) -> str:
    """Who is seen in an image: its PatientID, else what `pattern` finds in the id, else the id itself."""
    if isinstance(info.get("PatientID"), str) and info["PatientID"].strip():
        return str(info["PatientID"]).strip()
    found = pattern.search(image_id) if pattern else None
    return (found[1] if found.re.groups else found[0]) if found else image_id


def new_since(submissions: Collection[Submission], trained_on: Collection[str]) -> list[Submission]:
    """The submissions whose keys are not in `trained_on`."""
    known = set(trained_on)
    return [submission for submission in submissions if submission.key not in known]
