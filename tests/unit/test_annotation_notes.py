# SPDX-License-Identifier: Apache-2.0
"""Notes about images between two submissions: what replaces what, how many there are, and where they end up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kprism_model.volumes.prompts import LocatedClick
from kprism_model.volumes.slice_map import SliceMap
from lib.imaging.medical_image import MedicalImage
from lib.infers.prompted_slices import clicked_slices, scribbled_slices
from lib.learning.annotation_notes import AnnotationNote, AnnotationNotes, Prompts, prompts_from_json
from lib.learning.submitted_label import SubmittedLabel
from tests.unit.test_submissions import Site

ANSWER = {"weights_version": "0123abcd", "model": "interactive", "label_names": {"liver": 1}}
INSIDE, BESIDE = (2, 3, True), (5, 6, False)


def test_later_prompts_of_a_slice_replace_the_earlier_ones() -> None:
    notes = AnnotationNotes()
    notes.note("a", ANSWER, {"liver": {1: (INSIDE,), 4: (INSIDE,)}})
    notes.note("a", {**ANSWER, "model": "scribbles"}, {"liver": {4: (INSIDE, BESIDE)}, "spleen": {2: ()}})
    note = notes.of("a")
    assert note.prompts == {"liver": {1: (INSIDE,), 4: (INSIDE, BESIDE)}, "spleen": {2: ()}}
    assert note.initial_mask_origin == {"model": "interactive", "structures": ["liver"]}
    notes.remove("a")
    assert notes.of("a") == AnnotationNote()


def test_the_image_that_was_asked_about_least_recently_is_forgotten() -> None:
    notes = AnnotationNotes(limit=2)
    for image in ("a", "b", "a", "c"):
        notes.note(image, ANSWER, {})
    assert [notes.of(image).initial_mask_version for image in "abc"] == ["0123abcd", None, "0123abcd"]


def test_prompts_are_the_same_after_json() -> None:
    prompts: Prompts = {"liver": {1: (INSIDE, BESIDE), 12: ()}}
    assert prompts_from_json(json.loads(json.dumps(prompts))) == prompts


@pytest.mark.parametrize("content", [[], {"liver": [1]}, {"liver": {"one": []}}, {"liver": {"1": [[2, 3]]}}])
def test_other_json_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"expected prompts like {structure: {slice: \[\[row, column, positive\]"):
        prompts_from_json(content)


def test_a_kill_after_the_label_arrived_keeps_its_prompts(tmp_path: Path) -> None:
    """A restart loses the notes, but not those of a label that was being submitted."""
    site = Site(tmp_path / "studies")
    site.submissions.notes.note("a", ANSWER, {"Liver": {1: (INSIDE,)}, "spleen": {2: ()}})
    site.submissions._keep("a", site.label(1), {"label_names": {"liver": 1}}, "anna")
    restarted = Site(site.folder)
    restarted.submissions.recover()
    entry = restarted.store.get("a")
    assert entry is not None and entry.prompts == {"liver": {1: (INSIDE,)}}
    assert (entry.initial_mask_version, entry.initial_mask_origin) == (
        "0123abcd",
        {"model": "interactive", "structures": ["liver"]},
    )


def test_prompts_in_one_volume_of_a_series_count_in_the_case_that_is_read() -> None:
    """A series of two volumes along k, labelled in the second only: the case holds the slices of that one."""
    whole = MedicalImage("s", np.zeros((8, 9, 6), np.int16), np.diag([1, 1, 3, 1.0]), 3, "", "digest", volumes=2)
    part = whole.part(4)
    row, column = part.locate((1, 2, 1))[1:]
    clicks = [LocatedClick((1, 2, 1), True, *part.locate((1, 2, 1)))]
    scribbles = np.zeros(part.grid, np.int8)
    scribbles[4, 4, 2] = -1
    prompts = {**clicked_slices(clicks, part), **scribbled_slices(SliceMap.of(scribbles, part.orientation), part)}
    assert prompts == {4: ((row, column, True),), 5: ()}
    labels = np.zeros(whole.grid, np.uint8)
    labels[1:3, 2:4, 3] = 1
    label = SubmittedLabel(whole, labels, {"s": 1})
    assert label.on_case({"s": {0: (), **prompts, 9: ()}}) == {"s": {1: ((row, column, True),), 2: ()}}
