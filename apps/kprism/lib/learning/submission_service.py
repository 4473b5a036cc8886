# SPDX-License-Identifier: Apache-2.0
"""From a submitted label file to a case that can be a reference and be trained on.

A submission is first examined: what cannot be used is refused with a sentence, and nothing has changed. Then the file
is kept as it was sent, together with a note in `pending/`; then MONAI Label's datastore gets it; then the ledger. After
a kill in between, `recover` finishes what `pending/` notes. Labels that reached the datastore by other ways (a DICOM
SEG, a file put there by hand) are found by `reconcile`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from numpy.typing import NDArray

from kprism_model.data.partial import AnnotatedCase
from kprism_model.files import write_bytes
from lib.datastore import hand_names, image_path, labelled_cases
from lib.errors import RequestError
from lib.files import read_json, sha256, write_json
from lib.imaging.label_registry import LabelRegistry, label_values
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image, read_mask, suffix_of
from lib.imaging.writing import ResultFormat, write_mask
from lib.learning.submission_store import Submission, SubmissionStore, patient_of

logger = logging.getLogger(__name__)

ADD, REFUSE = "add", "refuse"
"""What is done with the name of a structure that nobody knows yet."""


class StorageError(RequestError):
    """The server cannot store the label; nothing has changed."""

    status = 507


@dataclass(frozen=True)
class Examined:
    """A label that can be used: an index map (i, j, k) of 1, 2, ... on its image's grid, and their names."""

    image: MedicalImage
    labels: NDArray[np.uint8]
    structures: dict[str, int]


class Reconciled(NamedTuple):
    """What was found in the datastore, and a sentence for all that is new, gone or cannot be used."""

    found: list[Submission]
    told: list[str]


class SubmissionService:
    """Takes labels in. `unknown` says whether new names of structures become labels or are refused.

    `patients` is a pattern that finds the patient in an image id where the datastore does not know it.
    """

    def __init__(
        self,
        ledger: SubmissionStore,
        datastore: Datastore,
        book: LabelRegistry,
        *,
        unknown: str = ADD,
        patients: re.Pattern[str] | None = None,
        read: Callable[[Path, str], MedicalImage] = read_image,
    ) -> None:
        if unknown not in (ADD, REFUSE):
            raise ValueError(f"new structures can be {ADD!r} or {REFUSE!r}, got {unknown!r}")
        self.ledger = ledger
        self.datastore, self._book, self._unknown, self._patients = datastore, book, unknown, patients
        self._read_image = read
        self._first_masks: dict[str, str] = {}
        self._storing = Lock()

    def note_answer(self, image_id: str, weights_version: str) -> None:
        """A mask was made for an image: the first one since its last submission is where the annotator started."""
        self._first_masks.setdefault(image_id, weights_version)

    def patient(self, image_id: str) -> str:
        """Who is seen in an image, as far as that is known."""
        return patient_of(image_id, self.datastore.get_image_info(image_id) or {}, self._patients)

    def submit(
        self, image_id: str, file: Path, info: Mapping[str, Any], *, tag: str = DefaultLabelTag.FINAL, by: str = ""
    ) -> Submission | None:
        """Take in a label; returns its entry, or None where the tag is another than `final`.

        RequestError, with nothing changed, for an image that is not there, a file that cannot be read, another shape
        than the image's, no voxel labelled, names that do not fit the values, or unknown names where they are refused.
        """
        if tag != DefaultLabelTag.FINAL:
            self.datastore.save_label(image_id, str(file), tag, dict(info))
            return None
        examined = self.examine(image_id, file, info)
        try:
            raw, note = self._keep(image_id, file, info, by)
        except OSError as error:
            raise _storage_error(image_id, error) from error
        try:
            return self._store(raw, note, examined)
        except RequestError:  # the client hears of it and still has its label; stored later, it might undo a newer one
            note.unlink(missing_ok=True)
            raise

    def examine(self, image_id: str, file: Path, info: Mapping[str, Any]) -> Examined:
        """Read a label and its names; RequestError as in `submit`."""
        image = self._read_image(image_path(self.datastore, image_id), f"image {image_id!r}")
        what = f"the label of image {image_id!r}"
        mask = read_mask(file, what)
        values = image.on_grid(mask, what)
        present = [int(value) for value in np.flatnonzero(np.bincount(values.ravel(order="K"))) if value]
        if not present:
            raise RequestError(f"{what} is empty: no voxel is labelled, so there is nothing to learn from it")
        named = self._named(image_id, what, info, present)
        table = np.zeros(256, np.uint8)
        structures: dict[str, int] = {}
        for name, value in named.items():
            table[value] = structures.setdefault(self._book.canonical(name), len(structures) + 1)
        return Examined(image, table[values], structures)

    def adopt(self, image_id: str) -> Submission | None:
        """Take in the label that the datastore holds for an image, unless it is known already.

        RequestError as in `submit`; the reason is kept, and an earlier label of the case counts on.
        """
        label_id = self.datastore.get_label_by_image_id(image_id, DefaultLabelTag.FINAL)
        file = Path(self.datastore.get_label_uri(label_id, DefaultLabelTag.FINAL))
        info = self.datastore.get_label_info(label_id, DefaultLabelTag.FINAL) or {}
        digest = sha256(file) if file.is_file() else ""
        before = self.ledger.get(image_id)
        if (before and before.sha256 == digest) or self.ledger.rejected().get(image_id, {}).get("sha256") == digest:
            return None
        try:
            examined = self.examine(image_id, file, info)
        except RequestError as error:
            self.ledger.reject(image_id, digest, str(error))
            raise
        raw, note = self._keep(image_id, file, info, str(info.get("client_id") or ""))
        with self._storing:
            if self.ledger.get(image_id) != before:  # submitted anew in the meantime
                note.unlink()
                return None
            return self._enter(raw, note, examined)

    def recover(self) -> list[str]:
        """Finish the submissions that a kill interrupted; a sentence for each."""
        told = []
        for note in sorted((self.ledger.folder / "pending").glob("*.json")):
            content = read_json(note) or {}
            raw = self.ledger.folder / str(content.get("raw"))
            newer = self.ledger.get(str(content.get("image")))
            if newer is not None and newer.at > content["at"]:
                note.unlink(missing_ok=True)
                told.append(f"the label in {raw}, interrupted before, is left out: a newer one was submitted since")
                continue
            try:
                self._store(raw, note, self.examine(content["image"], raw, content["info"]))
                told.append(f"the label of image {content['image']!r}, interrupted before, is stored now")
            except (RequestError, LookupError) as error:
                if getattr(error, "status", 400) >= 500:  # a store that is down now: the next start tries again
                    told.append(f"the label in {raw}, interrupted before, cannot be stored yet: {error}")
                    continue
                note.unlink(missing_ok=True)
                told.append(f"the label in {raw}, interrupted before, cannot be used: {error}")
        for sentence in told:
            logger.warning("%s", sentence)
        return told

    def reconcile(self) -> Reconciled:
        """Take in what the datastore holds and the ledger lacks, and forget the labels that it no longer holds.

        Labels may be submitted meanwhile; they are neither found nor forgotten.
        """
        found: list[Submission] = []
        told: list[str] = []
        before = self.ledger.submissions()  # first, for a label reaches the datastore before the ledger
        cases = labelled_cases(self.datastore)
        for case in cases:
            try:
                if (entry := self.adopt(case.image_id)) is not None:
                    found.append(entry)
                    told.append(f"the label of image {case.image_id!r} was found in the datastore")
            except RequestError as error:
                told.append(str(error))
        if isinstance(self.datastore, LocalDatastore):  # a folder always tells all its labels, a server may fail to
            gone = set(self.datastore.list_images()) - {case.image_id for case in cases}
            for entry in before:
                if entry.image_id in gone and self.ledger.get(entry.image_id) == entry:
                    self.ledger.withdraw(entry.image_id)
                    told.append(f"the label of image {entry.image_id!r} was removed")
        for sentence in told:
            logger.info("%s", sentence)
        return Reconciled(found, told)

    def load(self, submission: Submission) -> AnnotatedCase:
        """The case of a submission; RequestError says why it cannot be had (the image is gone, a file is damaged)."""
        image = self._read_image(image_path(self.datastore, submission.image_id), f"image {submission.image_id!r}")
        what = f"the kept label of image {submission.image_id!r}"
        mask = read_mask(self.ledger.folder / submission.label, what)
        labels = np.ascontiguousarray(image.to_slices(image.on_grid(mask, what)))
        return AnnotatedCase(submission.image_id, submission.patient, image.scaled, labels, submission.structures)

    def _named(self, image_id: str, what: str, info: Mapping[str, Any], present: list[int]) -> dict[str, int]:
        """Name -> value of the structures in the label; every value must have a name, new names may be refused."""
        try:
            named = label_values(info, hand_names(self.datastore).of(image_id), present)
        except ValueError as error:
            raise RequestError(f"{what}: {error}") from error
        values = {name: value for name, value in named.items() if value in present}
        nameless = sorted(set(present) - set(values.values()))
        if nameless:
            raise RequestError(
                f"{what}: nothing names the value{'s' if len(nameless) > 1 else ''} {', '.join(map(str, nameless))}; "
                'expected params like {"label_info": [{"name": "liver"}, ...]} or labels.json in the folder of studies'
            )
        known = self._book.indices()
        unknown = [name for name in values if self._book.canonical(name) not in known]
        if unknown and self._unknown == REFUSE:
            raise RequestError(
                f"{what} names {', '.join(map(repr, unknown))}, which is none of the labels in use here: "
                f"{', '.join(known)}"
            )
        return values

    def _keep(self, image_id: str, file: Path, info: Mapping[str, Any], by: str) -> tuple[Path, Path]:
        """Keep the file as it was sent and note that it has to be stored."""
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"{image_id}-{uuid.uuid4().hex[:12]}"
        raw = self.ledger.folder / "raw" / f"{name}{suffix_of(file)}"
        note = self.ledger.folder / "pending" / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
        write_bytes(raw, content)
        write_json(
            note,
            {
                "image": image_id,
                "raw": str(raw.relative_to(self.ledger.folder)),
                "sha256": digest,
                "info": dict(info),
                "by": by,
                "at": time.time(),
                "first_mask": self._first_masks.get(image_id),
            },
        )
        return raw, note

    def _store(self, raw: Path, note: Path, examined: Examined) -> Submission:
        """Hand a kept file to the datastore and enter it into the ledger, one submission at a time."""
        content = read_json(note) or {}
        try:
            with self._storing:
                self.datastore.save_label(content["image"], str(raw), DefaultLabelTag.FINAL, dict(content["info"]))
                return self._enter(raw, note, examined)
        except OSError as error:
            note.unlink(missing_ok=True)
            raise _storage_error(content["image"], error) from error

    def _enter(self, raw: Path, note: Path, examined: Examined) -> Submission:
        content = read_json(note) or {}
        image_id = content["image"]
        label = self.ledger.folder / "labels" / f"{raw.name.removesuffix(suffix_of(raw))}.nii.gz"
        written = write_mask(examined.labels, examined.image, ResultFormat(".nii.gz"))
        try:
            write_bytes(label, written.read_bytes())
        finally:
            written.unlink()
        self._book.add(examined.structures)
        entry = self.ledger.record(
            Submission(
                image_id=image_id,
                patient=self.patient(image_id),
                side="",
                structures=examined.structures,
                label=str(label.relative_to(self.ledger.folder)),
                raw=content["raw"],
                sha256=content["sha256"],
                content=_digest(examined),
                by=content["by"],
                at=content["at"],
                first_mask=content["first_mask"],
            )
        )
        note.unlink(missing_ok=True)
        self._first_masks.pop(image_id, None)
        return entry


def _digest(examined: Examined) -> str:
    """SHA-256 of the labelled voxels and what they are called."""
    digest = hashlib.sha256(json.dumps([examined.structures, examined.labels.shape]).encode())
    digest.update(examined.labels.tobytes(order="F"))
    return digest.hexdigest()


def _storage_error(image_id: str, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk of the server is full" if full else f"the server cannot write it ({error})"
    return StorageError(f"the label of image {image_id!r} is not stored: {reason}")
