# SPDX-License-Identifier: Apache-2.0
"""Labelled cases that are kept between trainings: what is kept of them, and when they are read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kprism_model.data.partial import AnnotatedCase
from kprism_model.training.validation import ValidationSettings
from lib.learning.submission_store import Submission
from lib.trainers.case_cache import MAX_SIDE, CaseCache, KeptSlices

SETTINGS = ValidationSettings()


class Archive:
    """A case that is read from one file, and how often it was read."""

    def __init__(self, folder: Path, shape: tuple[int, ...] = (100, 40, 60)) -> None:
        self.file = folder / "image"
        self.file.write_bytes(b"image")
        self.shape, self.read = shape, 0
        self.cache = CaseCache(folder / "cases", self.load, lambda submission: [self.file], SETTINGS)

    def load(self, submission: Submission) -> AnnotatedCase:
        self.read += 1
        images = np.random.default_rng(0).random(self.shape, np.float32)
        labels = np.zeros(self.shape[:3], np.uint8)
        labels[20:90, 10:30, 20:40] = 1
        return AnnotatedCase(submission.image_id, submission.patient, images, labels, submission.structures)


def submitted(**changes: object) -> Submission:
    entry = Submission("a", "p", 0, {"liver": 1}, "", "", "", "first", "", 0.0)
    return replace(entry, **changes)  # type: ignore[arg-type]


def test_a_case_is_read_once_and_only_some_slices_are_kept(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    first, second = (archive.cache.get(submitted()) for _ in range(2))
    assert archive.read == 1 and first.slices == second.slices
    numbers = list(first.slices.numbers)
    assert 64 <= len(numbers) < 80 and first.slices.shape == (40, 60)
    whole = archive.load(submitted())
    assert np.array_equal(first.case.labels, whole.labels[numbers])
    assert np.abs(first.case.images - whole.images[numbers]).max() < 1e-3
    assert np.array_equal(first.case.images, second.case.images)


def test_slices_with_prompts_are_kept_and_numbered_anew(tmp_path: Path) -> None:
    prompts = {"liver": {98: ((1, 2, True),), 250: ()}}
    kept = Archive(tmp_path).cache.get(submitted(prompts=prompts))
    assert 98 in kept.slices.numbers and 250 not in kept.slices.numbers
    place = kept.slices.numbers.index(98)
    assert kept.slices.renumbered(prompts["liver"]) == {place: ((1, 2, True),)}
    assert KeptSlices((3, 7), (8, 8)).renumbered({7: "seven", 4: "four"}) == {1: "seven"}


def test_large_pictures_become_smaller(tmp_path: Path) -> None:
    kept = Archive(tmp_path, (1, 1000, 2000, 3))
    kept.load = lambda submission: AnnotatedCase(  # type: ignore[method-assign]
        "a", "p", np.full((1, 1000, 2000, 3), 0.5, np.float32), np.ones((1, 1000, 2000), np.uint8), {"liver": 1}
    )
    cache = CaseCache(tmp_path / "large", kept.load, lambda submission: [kept.file], SETTINGS)
    reduced = cache.get(submitted())
    assert reduced.case.labels.shape == (1, MAX_SIDE // 2, MAX_SIDE) and reduced.slices.shape == (1000, 2000)
    assert np.allclose(reduced.case.images, 0.5) and reduced.case.labels.all()


def test_it_is_read_again_after_a_change_and_if_the_file_is_damaged(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.cache.get(submitted())
    archive.cache.get(submitted(content="second"))
    assert archive.read == 2
    archive.file.write_bytes(b"another image")
    archive.cache.get(submitted(content="second"))
    assert archive.read == 3
    archive.cache.keep([submitted(content="second")])
    [file] = (tmp_path / "cases").iterdir()
    file.write_bytes(file.read_bytes()[:500])
    assert archive.cache.get(submitted(content="second")).slices.shape == (40, 60)
    assert archive.read == 4


def test_a_case_whose_image_is_gone_is_not_used(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.cache.get(submitted())
    archive.file.unlink()
    with pytest.raises(FileNotFoundError):
        archive.cache.get(submitted())
