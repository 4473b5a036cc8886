# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning data set: the submitted labels that can be used, in their folds, and why others cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kprism_model.classes import ClassRegistry
from kprism_model.data.annotated_sampling import RecordedClick, RecordedClicks, Weights
from kprism_model.data.partial import AnnotatedCase, StoreBuilder, trimmed
from kprism_model.data.slices import SliceStore
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import largest_slices
from kprism_model.training.validation import ValidationSettings, chosen_slices
from lib.errors import RequestError
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import MIN_LABELS
from lib.trainers.case_cache import KeptSlices, ReducedCase

logger = logging.getLogger(__name__)

JUDGED_CASES = 24
"""Cases that the gate measures, the first that were submitted: so new cases seldom change what is compared."""

JUDGED_SLICES = 120
"""More cases are measured as long as all have fewer slices than this: pictures take less time than volumes."""

MIN_JUDGED_CASES = 6
"""Cases of each structure that the gate measures in any case, if there are so many."""

CORRECTED_WEIGHT = 3.0
"""How often a slice on which the annotator clicked or drew is trained on, relative to one that was accepted unseen."""


@dataclass
class FinetuneDataset:
    """Slices to train on, cases to judge by, submissions that are used, and those that are not (image id -> reason).

    `reduced` are the cases by name, without their images: rows and columns and the numbers of the kept slices.
    """

    store: SliceStore
    judged: list[AnnotatedCase]
    used: list[Submission]
    skipped: dict[str, str] = field(default_factory=dict)
    reduced: Mapping[str, KeptSlices] = field(default_factory=dict)

    @property
    def clicks(self) -> RecordedClicks:
        """The clicks that annotators made, as shares of the image's height and width."""
        recorded: dict[str, dict[str, dict[int, list[RecordedClick]]]] = {}
        for submission in self.used:
            kept = self.reduced[submission.image_id]
            rows, columns = kept.shape
            recorded[submission.image_id] = {
                name: {
                    number: [
                        ((row + 0.5) / rows, (column + 0.5) / columns, positive) for row, column, positive in clicks
                    ]
                    for number, clicks in kept.renumbered(slices).items()
                }
                for name, slices in submission.prompts.items()
            }
        return recorded

    @property
    def weights(self) -> Weights:
        """How often slices are drawn: those that were corrected more often than the others."""
        corrected = {}
        for submission in self.used:
            kept = self.reduced[submission.image_id]
            numbers = {number for slices in submission.prompts.values() for number in kept.renumbered(slices)}
            corrected[submission.image_id] = dict.fromkeys(sorted(numbers), CORRECTED_WEIGHT)
        return corrected

    @property
    def patients(self) -> list[str]:
        """All patients of the cases that are used."""
        return list(dict.fromkeys(submission.patient for submission in self.used))

    @property
    def folds(self) -> list[int]:
        """The folds of cross-validation that hold a patient; none if all patients are in one fold."""
        folds = sorted({submission.fold for submission in self.used})
        return folds if len(folds) > 1 else []

    def patients_in(self, fold: int) -> list[str]:
        """The patients of a fold."""
        return list(dict.fromkeys(submission.patient for submission in self.used if submission.fold == fold))

    def judged_in(self, fold: int) -> list[AnnotatedCase]:
        """The cases of a fold that the gate measures."""
        patients = self.patients_in(fold)
        return [case for case in self.judged if case.patient in patients]

    def without(self, patients: Collection[str]) -> list[AnnotatedCase]:
        """The cases of other patients, which can be references."""
        return [case for case in self.judged if case.patient not in patients]

    @property
    def keys(self) -> dict[str, str]:
        """Case name -> key of its submission, for the cases that the gate measures."""
        judged = {case.name for case in self.judged}
        return {submission.image_id: submission.key for submission in self.used if submission.image_id in judged}

    @property
    def structures(self) -> list[str]:
        """The structures of the cases that the gate measures."""
        return list(dict.fromkeys(name for case in self.judged for name in case.structures))

    def class_references(
        self, predictor: Predictor, registry: ClassRegistry, unseen: Collection[str]
    ) -> dict[str, References]:
        """Encoded references of the structures that are not in `registry`, from patients outside `unseen`."""
        references: dict[str, References] = {}
        cases = self.without(unseen)
        for name in self.store.class_names:
            chosen = [case for case in cases if name in case.structures and len(case.shown(name))]
            if chosen and name not in registry:
                references[name] = largest_slices(predictor, chosen, name)
        return references


def build_dataset(
    submissions: Sequence[Submission],
    load: Callable[[Submission], ReducedCase],
    folder: Path,
    *,
    size: int,
    settings: ValidationSettings,
    known: Iterable[str] = (),
) -> FinetuneDataset:
    """Read every submission once; RequestError if fewer than `MIN_LABELS` can be used.

    `folder` is for the training slices, whose longer side is `size` pixels. `known` are names of structures as they are
    spelled elsewhere.
    """
    slices = StoreBuilder(folder, size)
    judged: list[AnnotatedCase] = []
    used: list[Submission] = []
    skipped: dict[str, str] = {}
    kept: dict[str, KeptSlices] = {}
    for submission in spelled_alike(submissions, known):
        try:
            reduced = load(submission)
            case = reduced.case
            slices.add(case)
        except (ValueError, OSError) as error:
            skipped[submission.image_id] = str(error)
            logger.warning("Left out: %s", error)
            continue
        used.append(submission)
        kept[case.name] = reduced.slices
        if _is_wanted(case, judged):
            judged.append(_for_judging(case, settings))
    if len(used) < MIN_LABELS:
        reasons = f" ({'; '.join(skipped.values())})" if skipped else ""
        raise RequestError(
            f"training needs {MIN_LABELS} labelled cases that can be learned from; there is {len(used)}{reasons}"
        )
    return FinetuneDataset(slices.store(), judged, used, skipped, kept)


def spelled_alike(submissions: Iterable[Submission], known: Iterable[str] = ()) -> list[Submission]:
    """The submissions by age, with one spelling of each structure: that of `known`, else the oldest.

    A name may have been written in other letter cases before a restart or an upgrade; it is the same structure.
    """
    names, alike = LabelRegistry(known), []
    for entry in sorted(submissions, key=lambda entry: (entry.at, entry.image_id)):
        names.add((*entry.structures, *entry.prompts))
        structures = {names.canonical(name): value for name, value in entry.structures.items()}
        prompts = {names.canonical(name): slices for name, slices in entry.prompts.items()}
        alike.append(replace(entry, structures=structures, prompts=prompts))
    return alike


def _is_wanted(case: AnnotatedCase, judged: Sequence[AnnotatedCase]) -> bool:
    """Whether the gate measures a case besides those so far: there are few, or few of a structure of the case."""
    if len(judged) < JUDGED_CASES or sum(len(other.labels) for other in judged) < JUDGED_SLICES:
        return True
    return any(sum(name in other.structures for other in judged) < MIN_JUDGED_CASES for name in case.structures)


def _for_judging(case: AnnotatedCase, settings: ValidationSettings) -> AnnotatedCase:
    numbers = sorted({number for name in case.structures for number in chosen_slices(case, name, settings)})
    return trimmed(case, numbers or list(np.arange(min(1, len(case.labels)))))
