# SPDX-License-Identifier: Apache-2.0
"""What is trained on and judged by: folds, every structure that was ever labelled, clicks and corrected slices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kprism_model.data.partial import AnnotatedCase
from kprism_model.training.validation import ValidationSettings
from lib.learning.submission_store import Submission
from lib.trainers.case_cache import KeptSlices, ReducedCase
from lib.trainers.finetune_dataset import (
    CORRECTED_WEIGHT,
    JUDGED_SLICES,
    MIN_JUDGED_CASES,
    FinetuneDataset,
    build_dataset,
    spelled_alike,
)


def material(folder: Path, *cases: tuple[str, int, str]) -> FinetuneDataset:
    """Of cases given as name, fold and the structures with commas between them."""
    submissions = [
        Submission(name, name, fold, {s: n for n, s in enumerate(shown.split(","), 1)}, "", "", "", name, "", 0.0)
        for name, fold, shown in cases
    ]
    return build_dataset(submissions, load, folder, size=32, settings=ValidationSettings())


def load(submission: Submission) -> ReducedCase:
    labels = np.zeros((1, 32, 32), np.uint8)
    for value in submission.structures.values():
        labels[0, 10 * value - 8 : 10 * value, 4:28] = value
    images = labels.astype(np.float32) / 4
    case = AnnotatedCase(submission.image_id, submission.patient, images, labels, submission.structures)
    return ReducedCase(case, KeptSlices((5,), (64, 64)))  # one of several slices, twice as large


def test_structures_that_were_learned_earlier_stay_in_the_gate_however_many_cases_there_are(tmp_path: Path) -> None:
    many = [(f"a{number:03d}", number % 3, "liver") for number in range(JUDGED_SLICES + 6)]
    few = [(f"z{number}", number % 3, "spleen") for number in range(MIN_JUDGED_CASES + 2)]
    found = material(tmp_path, *many, *few)
    counts = {name: sum(name in case.structures for case in found.judged) for name in ("liver", "spleen")}
    assert counts == {"liver": JUDGED_SLICES, "spleen": MIN_JUDGED_CASES}
    assert found.structures == ["liver", "spleen"] and len(found.keys) == len(found.judged)


def test_spellings_of_one_structure_are_one_structure(tmp_path: Path) -> None:
    cases = ("a", 0, "Tumour"), ("b", 1, "tumour "), ("c", 2, "TUMOUR,Cyst")
    found = material(tmp_path, *cases)
    assert found.structures == ["Tumour", "Cyst"] and found.store.class_names == ("Tumour", "Cyst")
    submissions = [replace(entry, prompts={"TUMOUR": {}}) for entry in found.used]
    alike = spelled_alike(submissions, ["tumour"])
    assert [list(entry.structures) for entry in alike] == [["tumour"], ["tumour"], ["tumour", "Cyst"]]
    assert all(list(entry.prompts) == ["tumour"] for entry in alike)


def test_each_fold_is_judged_on_its_own_patients_with_references_from_the_others(tmp_path: Path) -> None:
    found = material(tmp_path, ("a", 0, "liver"), ("b", 1, "liver"), ("c", 2, "liver"), ("d", 0, "liver,spleen"))
    assert found.folds == [0, 1, 2] and found.patients == ["a", "b", "c", "d"]
    assert found.patients_in(0) == ["a", "d"] and [case.name for case in found.judged_in(0)] == ["a", "d"]
    assert [case.name for case in found.without(found.patients_in(0))] == ["b", "c"]


def test_an_empty_fold_is_left_out_and_one_fold_alone_judges_nothing(tmp_path: Path) -> None:
    assert material(tmp_path / "two", ("a", 0, "liver"), ("b", 2, "liver")).folds == [0, 2]
    assert material(tmp_path / "one", ("a", 1, "liver"), ("b", 1, "liver")).folds == []


def test_clicks_are_given_as_shares_of_the_image_and_corrected_slices_weigh_more(tmp_path: Path) -> None:
    found = material(tmp_path, ("a", 0, "liver"), ("b", 1, "liver"))
    found.used[0] = replace(found.used[0], prompts={"liver": {5: ((3, 15, True), (31, 0, False))}, "spleen": {2: ()}})
    assert found.clicks["a"]["liver"] == {0: [(3.5 / 64, 15.5 / 64, True), (31.5 / 64, 0.5 / 64, False)]}
    assert found.weights == {"a": {0: CORRECTED_WEIGHT}, "b": {}}
