# SPDX-License-Identifier: Apache-2.0
"""What a candidate is judged on: every structure that was ever labelled, on validation cases where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase
from kprism_model.training.validation import ValidationSettings
from lib.learning.submission_store import Submission
from lib.trainers.finetune_dataset import (
    MAX_VALIDATION_CASES,
    MIN_VALIDATION_CASES,
    VALIDATION_FOLD,
    FinetuneDataset,
    build_dataset,
)

KNOWN = ClassRegistry(["liver", "spleen", "kidney"])


def material(folder: Path, *cases: tuple[str, int, str]) -> FinetuneDataset:
    """Of cases given as name, fold and the structures with commas between them."""
    submissions = [
        Submission(name, name, fold, {s: n for n, s in enumerate(shown.split(","), 1)}, "", "", "", name, "", 0.0)
        for name, fold, shown in cases
    ]
    return build_dataset(submissions, load, folder, size=32, settings=ValidationSettings())


def load(submission: Submission) -> AnnotatedCase:
    labels = np.zeros((1, 32, 32), np.uint8)
    for value in submission.structures.values():
        labels[0, 10 * value - 8 : 10 * value, 4:28] = value
    images = labels.astype(np.float32) / 4
    return AnnotatedCase(submission.image_id, submission.patient, images, labels, submission.structures)


def judged(found: FinetuneDataset) -> dict[str, list[str]]:
    """Structures by the case that they are judged on."""
    return {case.name: list(case.structures) for case in found.validation}


def test_structures_that_were_learned_earlier_stay_in_the_gate_however_many_cases_there_are(tmp_path: Path) -> None:
    new = [(f"a{number:02d}", VALIDATION_FOLD, "liver") for number in range(MAX_VALIDATION_CASES + 6)]
    old = [(f"z{number}", VALIDATION_FOLD, "spleen") for number in range(5)]
    found = material(tmp_path, ("t1", 0, "liver"), ("t2", 0, "liver,spleen"), *new, *old)
    counts = {name: sum(name in shown for shown in judged(found).values()) for name in ("liver", "spleen")}
    assert counts == {"liver": MAX_VALIDATION_CASES, "spleen": MIN_VALIDATION_CASES}
    assert found.warning == "" and found.not_judged(KNOWN) == ["kidney"]


def test_a_structure_without_a_validation_case_is_judged_on_cases_it_was_trained_on(tmp_path: Path) -> None:
    cases = (("t1", 0, "liver"), ("t2", 0, "liver,spleen"), ("v", VALIDATION_FOLD, "liver"))
    found = material(tmp_path, *cases)
    assert judged(found) == {"v": ["liver"], "t2": ["spleen"]}
    assert found.warning == "no validation case shows spleen yet: judged on cases that it was trained on"


def test_without_any_validation_case_all_is_judged_on_cases_it_was_trained_on(tmp_path: Path) -> None:
    found = material(tmp_path, ("t1", 0, "liver"), ("t2", 0, "liver,spleen"))
    assert judged(found) == {"t1": ["liver"], "t2": ["liver", "spleen"]}
    assert found.warning == "no validation case yet: judged on cases that it was trained on"
