# SPDX-License-Identifier: Apache-2.0
"""What a training has to work with: the submitted labels that can be used, on their sides, and why others cannot."""

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
from lib.learning.submission_store import TRAINING, Submission

logger = logging.getLogger(__name__)

FEWEST = 2
"""Training cases that it takes: one is the reference of the other."""

MOST_VALIDATED = 24
"""Validation cases that are looked at; the first by name, so that more cases do not change the yardstick often."""

LEAST_VALIDATED = 3
"""Validation cases of each structure that are looked at however many there are of others, where there are so many."""

MOST_EXAMPLES = 6
"""Training cases of a structure that serve as references in validation and as the start of a new class."""


@dataclass
class FinetuneDataset:
    """Slices to train on, cases to validate on, cases to be references, and what was left out (image id -> why).

    `note` says which structures are judged on cases that were trained on, for want of validation cases.
    """

    store: SliceStore
    validation: list[AnnotatedCase]
    examples: list[AnnotatedCase]
    used: list[Submission]
    skipped: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def not_judged(self, registry: ClassRegistry) -> list[str]:
        """Structures that the network knows and no label here shows: distillation alone keeps them."""
        return [name for name in registry.names if not any(name in case.structures for case in self.validation)]

    def starts(self, predictor: Predictor, registry: ClassRegistry) -> dict[str, References]:
        """Encoded references of the structures that the network does not know yet."""
        found: dict[str, References] = {}
        for name in self.store.class_names:
            cases = [case for case in self.examples if name in case.structures and len(case.shown(name))]
            if name in registry or not cases:
                continue
            numbers = [int(case.mask(name).sum(axis=(1, 2)).argmax()) for case in cases]
            found[name] = predictor.embed_references(
                [case.picture(number) for case, number in zip(cases, numbers, strict=True)],
                [case.mask(name)[number] for case, number in zip(cases, numbers, strict=True)],
            )
        return found


def gather(
    submissions: Sequence[Submission],
    load: Callable[[Submission], AnnotatedCase],
    folder: Path,
    *,
    size: int,
    settings: ValidationSettings,
) -> FinetuneDataset:
    """Read every submission once; RequestError if fewer than `FEWEST` training cases can be used.

    The validation cases are those of all structures that were ever labelled here, also of those that earlier versions
    have learned. A structure that no validation case shows is judged on training cases, which `note` says.
    """
    builder = StoreBuilder(folder, size)
    skipped: dict[str, str] = {}
    used: list[Submission] = []
    validation: list[AnnotatedCase] = []
    examples: list[AnnotatedCase] = []
    training = 0
    for submission in sorted(submissions, key=lambda entry: entry.image_id):
        try:
            case = load(submission)
            if submission.side == TRAINING:
                builder.add(case)
                training += 1
                if _is_wanted(case, examples, MOST_EXAMPLES):
                    examples.append(_for_validation(case, settings))
            elif len(validation) < MOST_VALIDATED or _is_wanted(case, validation, LEAST_VALIDATED):
                validation.append(_for_validation(case, settings))
        except (ValueError, OSError) as error:
            skipped[submission.image_id] = str(error)
            logger.warning("Left out: %s", error)
            continue
        used.append(submission)
    if training < FEWEST:
        reasons = f" ({'; '.join(skipped.values())})" if skipped else ""
        raise RequestError(
            f"training needs {FEWEST} labelled cases that can be learned from; there is {training}{reasons}"
        )
    borrowed = _borrowed(validation, examples)
    names = dict.fromkeys(name for case in borrowed for name in case.structures)
    shows = f" shows {', '.join(names)}" if validation else ""
    note = f"no validation case{shows} yet: judged on cases that it was trained on" if borrowed else ""
    return FinetuneDataset(builder.store(), [*validation, *borrowed], examples, used, skipped, note)


def _is_wanted(case: AnnotatedCase, chosen: Sequence[AnnotatedCase], count: int) -> bool:
    """Whether a structure of the case is shown by fewer than `count` of the cases chosen so far."""
    return any(sum(name in other.structures for other in chosen) < count for name in case.structures)


def _borrowed(validation: Sequence[AnnotatedCase], examples: Sequence[AnnotatedCase]) -> list[AnnotatedCase]:
    """Training cases, annotated only for the structures that no validation case shows."""
    judged = {name for case in validation for name in case.structures}
    found = []
    for case in examples:
        structures = {name: value for name, value in case.structures.items() if name not in judged}
        if structures:
            found.append(replace(case, structures=structures))
    return found


def _for_validation(case: AnnotatedCase, settings: ValidationSettings) -> AnnotatedCase:
    numbers = sorted({number for name in case.structures for number in chosen_slices(case, name, settings)})
    return trimmed(case, numbers or list(np.arange(min(1, len(case.labels)))))
