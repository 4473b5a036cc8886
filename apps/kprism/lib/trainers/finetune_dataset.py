# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning data set: the submitted labels that can be used, in their splits, and why others cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase, StoreBuilder, trimmed
from kprism_model.data.slices import SliceStore
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.training.validation import ValidationSettings, chosen_slices
from lib.errors import RequestError
from lib.learning.submission_store import FOLDS, Submission

logger = logging.getLogger(__name__)

VALIDATION_FOLD = FOLDS - 1
"""The cases of this fold are for validation, the others for training."""

MIN_TRAINING_CASES = 2
"""A training needs this many training cases: one is the reference of the other."""

MAX_VALIDATION_CASES = 24
"""Validation cases that are used, the first by name: so new cases seldom change what versions are compared on."""

MIN_VALIDATION_CASES = 3
"""Validation cases of each structure that are used in any case, if there are so many."""

MAX_REFERENCE_CASES = 6
"""Training cases of a structure that are references in validation and the start of a new class."""


@dataclass
class FinetuneDataset:
    """Slices to train on, validation cases, cases that are references, and skipped submissions (image id -> reason).

    `warning` names the structures without a validation case, which are judged on training cases.
    """

    store: SliceStore
    validation: list[AnnotatedCase]
    reference_cases: list[AnnotatedCase]
    used: list[Submission]
    skipped: dict[str, str] = field(default_factory=dict)
    warning: str = ""

    def not_judged(self, registry: ClassRegistry) -> list[str]:
        """Structures that the network knows but no label here shows."""
        return [name for name in registry.names if not any(name in case.structures for case in self.validation)]

    def class_references(self, predictor: Predictor, registry: ClassRegistry) -> dict[str, References]:
        """Encoded references of the structures that the network does not know yet."""
        references: dict[str, References] = {}
        for name in self.store.class_names:
            cases = [case for case in self.reference_cases if name in case.structures and len(case.shown(name))]
            if name in registry or not cases:
                continue
            numbers = [int(case.mask(name).sum(axis=(1, 2)).argmax()) for case in cases]
            references[name] = predictor.embed_references(
                [case.picture(number) for case, number in zip(cases, numbers, strict=True)],
                [case.mask(name)[number] for case, number in zip(cases, numbers, strict=True)],
            )
        return references


def build_dataset(
    submissions: Sequence[Submission],
    load: Callable[[Submission], AnnotatedCase],
    folder: Path,
    *,
    size: int,
    settings: ValidationSettings,
) -> FinetuneDataset:
    """Read every submission once; RequestError if fewer than `MIN_TRAINING_CASES` training cases can be used.

    `folder` is for the training slices, whose longer side is `size` pixels. The validation cases show all structures
    that were ever labelled here, including those that earlier versions have learned.
    """
    builder = _DatasetBuilder(folder, size, settings)
    for submission in sorted(submissions, key=lambda entry: entry.image_id):
        try:
            builder.add(submission, load(submission))
        except (ValueError, OSError) as error:
            builder.skipped[submission.image_id] = str(error)
            logger.warning("Left out: %s", error)
    return builder.dataset()


class _DatasetBuilder:
    """Sorts cases into training slices, validation cases and reference cases."""

    def __init__(self, folder: Path, size: int, settings: ValidationSettings) -> None:
        self._slices, self._settings = StoreBuilder(folder, size), settings
        self._training = 0
        self._validation: list[AnnotatedCase] = []
        self._reference_cases: list[AnnotatedCase] = []
        self._used: list[Submission] = []
        self.skipped: dict[str, str] = {}

    def add(self, submission: Submission, case: AnnotatedCase) -> None:
        """Add a case to its split."""
        if submission.fold != VALIDATION_FOLD:
            self._slices.add(case)
            self._training += 1
            if _is_wanted(case, self._reference_cases, MAX_REFERENCE_CASES):
                self._reference_cases.append(_for_validation(case, self._settings))
        elif len(self._validation) < MAX_VALIDATION_CASES or _is_wanted(case, self._validation, MIN_VALIDATION_CASES):
            self._validation.append(_for_validation(case, self._settings))
        self._used.append(submission)

    def dataset(self) -> FinetuneDataset:
        """The data set of the cases so far; RequestError if there are too few to train on."""
        if self._training < MIN_TRAINING_CASES:
            reasons = f" ({'; '.join(self.skipped.values())})" if self.skipped else ""
            raise RequestError(
                f"training needs {MIN_TRAINING_CASES} labelled cases that can be learned from; "
                f"there is {self._training}{reasons}"
            )
        substitutes = _substitutes(self._validation, self._reference_cases)
        names = dict.fromkeys(name for case in substitutes for name in case.structures)
        shows = f" shows {', '.join(names)}" if self._validation else ""
        warning = f"no validation case{shows} yet: judged on cases that it was trained on" if substitutes else ""
        return FinetuneDataset(
            store=self._slices.store(),
            validation=[*self._validation, *substitutes],
            reference_cases=self._reference_cases,
            used=self._used,
            skipped=self.skipped,
            warning=warning,
        )


def _is_wanted(case: AnnotatedCase, chosen: Sequence[AnnotatedCase], count: int) -> bool:
    """Whether a structure of the case is shown by fewer than `count` of the cases chosen so far."""
    return any(sum(name in other.structures for other in chosen) < count for name in case.structures)


def _substitutes(validation: Sequence[AnnotatedCase], reference_cases: Sequence[AnnotatedCase]) -> list[AnnotatedCase]:
    """Training cases in place of missing validation cases, with only the structures that no validation case shows."""
    judged = {name for case in validation for name in case.structures}
    substitutes = []
    for case in reference_cases:
        structures = {name: value for name, value in case.structures.items() if name not in judged}
        if structures:
            substitutes.append(replace(case, structures=structures))
    return substitutes


def _for_validation(case: AnnotatedCase, settings: ValidationSettings) -> AnnotatedCase:
    numbers = sorted({number for name in case.structures for number in chosen_slices(case, name, settings)})
    return trimmed(case, numbers or list(np.arange(min(1, len(case.labels)))))
