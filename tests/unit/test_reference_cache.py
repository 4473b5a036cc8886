# SPDX-License-Identifier: Apache-2.0
"""The reference cache: what is encoded when, which references are found, and what is never a reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from lib.errors import StorageError
from lib.learning.reference_cache import MAX_REFERENCES, ReferenceCache, chosen_slices
from lib.learning.submission_store import Submission

SIDE = 64


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(num_classes=1)), ClassRegistry(["anything"]))


def case(name: str, *, bright: float = 0.8, patient: str | None = None, slices: int = 1) -> AnnotatedCase:
    """A dark image with a disc of a certain brightness."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    disc = (rows - 30) ** 2 + (columns - 30) ** 2 < 15**2
    image = np.where(disc, np.float32(bright), np.float32(0.1))
    images = np.repeat(image[None], slices, 0).astype(np.float32)
    return AnnotatedCase(name, patient or name, images, np.repeat(disc[None], slices, 0).astype(np.uint8), {"disc": 1})


class Ward:
    """Cases with their submissions, and a cache that counts what it reads."""

    def __init__(self, folder: Path, *cases: AnnotatedCase) -> None:
        self.cases = {case.name: case for case in cases}
        self.read: list[str] = []
        self.reference_cache = ReferenceCache(folder, self.load)

    @property
    def submissions(self) -> list[Submission]:
        return [
            Submission(name, case.patient, 0, case.structures, "", "", "", f"{name} content", "", 0.0)
            for name, case in self.cases.items()
        ]

    def load(self, submission: Submission) -> AnnotatedCase:
        self.read.append(submission.image_id)
        if submission.image_id == "gone":
            raise ValueError("image 'gone' is not in this datastore")
        return self.cases[submission.image_id]


def test_each_case_is_encoded_once_a_version(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a"), case("b", slices=3))
    passes = predictor.encoder_passes
    assert ward.reference_cache.update(predictor, "v1", ward.submissions) == 2
    assert ward.reference_cache.update(predictor, "v1", ward.submissions) == 0
    assert predictor.encoder_passes - passes == 4
    restarted = Ward(tmp_path, case("a"), case("b", slices=3))
    assert restarted.reference_cache.update(predictor, "v1", ward.submissions) == 2
    assert predictor.encoder_passes - passes == 4 and restarted.read == []
    assert ward.reference_cache.update(predictor, "v2", ward.submissions) == 2
    assert predictor.encoder_passes - passes == 8


def test_kept_references_answer_as_fresh_ones_do(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a"), case("b", bright=0.5))
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    query = predictor.embed([case("q").images[0]])[0]
    entries = ward.reference_cache.find("v1", "disc", query, count=2)
    kept = ward.reference_cache.references(predictor, "v1", entries)
    cases = [ward.cases[entry.image_id] for entry in entries]
    fresh = predictor.embed_references([c.images[0] for c in cases], [c.mask("disc")[0] for c in cases])
    for one, other in zip((*kept.summaries, kept.keys, kept.values), (*fresh.summaries, *fresh[1:]), strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=2e-3, rtol=2e-3)  # kept at half precision
    answers = [predictor.predict(references=r, embedding=query).probability for r in (kept, fresh)]
    assert np.abs(answers[0] - answers[1]).max() < 5e-3


def test_the_most_similar_object_comes_first_and_a_case_never_refers_to_itself(
    predictor: Predictor, tmp_path: Path
) -> None:
    ward = Ward(tmp_path, case("dark", bright=0.3), case("bright", bright=0.9), case("query", bright=0.9))
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    query = predictor.embed([ward.cases["query"].images[0]])[0]
    found = ward.reference_cache.find("v1", "disc", query, image_id="query")
    assert [entry.image_id for entry in found] == ["bright", "dark"]
    assert ward.reference_cache.find("v1", "disc", query)[0].image_id in ("bright", "query")


def test_a_patient_is_no_reference_for_the_same_patient(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a", patient="p1"), case("b", patient="p2"), case("c", patient="p1"))
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    query = predictor.embed([ward.cases["a"].images[0]])[0]
    assert [e.image_id for e in ward.reference_cache.find("v1", "disc", query, image_id="a", patient="p1")] == ["b"]
    assert ward.reference_cache.structures("v1", image_id="b", patient="p2") == ["disc"]
    assert ward.reference_cache.structures("v1", patient="p1") == ["disc"]
    assert ward.reference_cache.find("v1", "ring", query) == []


def test_other_cases_come_before_other_slices_and_five_is_the_most(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a", slices=4), case("b", slices=2), case("c"))
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    query = predictor.embed([case("q").images[0]])[0]
    assert {entry.image_id for entry in ward.reference_cache.find("v1", "disc", query, count=3)} == {"a", "b", "c"}
    found = ward.reference_cache.find("v1", "disc", query, count=16)
    assert len(found) == MAX_REFERENCES and len({(entry.image_id, entry.slice) for entry in found}) == MAX_REFERENCES
    with pytest.raises(ValueError, match="at least one reference"):
        ward.reference_cache.find("v1", "disc", query, count=0)


def test_a_new_label_replaces_the_old_reference_and_removed_ones_go(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a"), case("b"))
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    query = predictor.embed([case("q").images[0]])[0]
    [first, _] = ward.submissions
    changed = Submission(**{**vars(first), "content": "another"})
    ward.reference_cache.update(predictor, "v1", [changed])
    assert [entry.key for entry in ward.reference_cache.find("v1", "disc", query)] == [changed.key]


def test_a_case_that_cannot_be_read_is_left_out_with_its_reason(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a"), case("gone"))
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    query = predictor.embed([case("q").images[0]])[0]
    assert [entry.image_id for entry in ward.reference_cache.find("v1", "disc", query)] == ["a"]
    assert ward.reference_cache.faults == {"gone": "image 'gone' is not in this datastore"}
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    assert ward.read == ["a", "gone"]


def test_a_case_that_cannot_be_read_now_is_encoded_later(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward = Ward(tmp_path, case("a"))
    errors: list[Exception] = [OSError("disk"), StorageError("the server cannot write")]

    def load(submission: Submission) -> AnnotatedCase:
        if errors:
            raise errors.pop()
        return ward.load(submission)

    cache = ReferenceCache(tmp_path, load)
    assert cache.update(predictor, "v1", ward.submissions) == 0
    assert cache.faults == {"a": "the server cannot write"}
    assert cache.update(predictor, "v1", ward.submissions) == 0
    assert len(errors) == 1  # not at once
    monkeypatch.setattr("lib.learning.reference_cache.RETRY_SECONDS", 0.0)
    cache._postponed.clear()
    assert cache.update(predictor, "v1", ward.submissions) == 0
    assert cache.update(predictor, "v1", ward.submissions) == 1
    assert cache.structures("v1") == ["disc"] and cache.faults == {}


def test_a_damaged_file_is_encoded_again(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a"))
    ward.reference_cache = ReferenceCache(tmp_path, ward.load, budget=0)
    ward.reference_cache.update(predictor, "v1", ward.submissions)
    [file] = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    query = predictor.embed([case("q").images[0]])[0]
    entries = ward.reference_cache.find("v1", "disc", query)
    assert ward.reference_cache.references(predictor, "v1", entries).keys.shape[:2] == (1, 1)
    assert file.read_bytes() == whole


def test_references_of_networks_in_use_and_of_those_before_are_kept(predictor: Predictor, tmp_path: Path) -> None:
    ward = Ward(tmp_path, case("a"))
    for versions in (["v0", "v1"], ["v0", "v2"], ["v2", "v3"], ["v2", "v3"]):
        for version in versions:
            ward.reference_cache.update(predictor, version, ward.submissions)
        ward.reference_cache.keep(versions)
    kept = {version: bool(ward.reference_cache.structures(version)) for version in ("v0", "v1", "v2", "v3")}
    assert kept == {"v0": True, "v1": False, "v2": True, "v3": True}
    ward.reference_cache.keep(["v3"])
    ward.reference_cache.keep(["v2", "v3"])
    assert sorted(file.name[:2] for file in tmp_path.glob("*.safetensors")) == ["v2", "v3"]


def test_slices_are_spread_over_those_that_show_enough() -> None:
    mask = np.zeros((20, 8, 8), bool)
    mask[4:16, :4] = True
    mask[3, 0, 0] = mask[16, 0, 0] = True  # too small to be an example
    assert chosen_slices(mask, 3) == [6, 10, 14]
    assert chosen_slices(mask[5:6]) == [0]
    assert chosen_slices(np.zeros((3, 8, 8), bool)) == []
