# SPDX-License-Identifier: Apache-2.0
"""The weights that trainings go on from, and the scores that are kept between trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.validation import Score
from lib.trainers.judged_scores import JudgedScores
from lib.trainers.working_weights import FINAL, Start, WorkingWeights, fold_name

REGISTRY = ClassRegistry(["liver"])


@pytest.fixture
def shipped(tmp_path: Path) -> Checkpoint:
    return Checkpoint(network(0), REGISTRY, {}, "0123456789ab", tmp_path / "shipped.safetensors")


def network(seed: int) -> KPrism:
    torch.manual_seed(seed)
    return KPrism(KPrismConfig.tiny(num_classes=1)).eval()


def saved(folder: Path, *, serving: int = 0, base: str = "0123456789ab") -> WorkingWeights:
    """Weights of all patients (seed 1), and of fold 0 (seed 2) without patient a."""
    working = WorkingWeights(folder, base=base, serving=serving)
    for name, seed, patients in ((FINAL, 1, ["a", "b", "c"]), (fold_name(0), 2, ["b", "c"])):
        state = folder.parent / f"run-{name}"
        state.mkdir()
        working.save(name, network(seed), REGISTRY, patients, state, serving=serving)
    return working


def same(start: Start, seed: int) -> bool:
    return torch.equal(start.checkpoint.model.decoder.class_content, network(seed).decoder.class_content)


def test_each_training_goes_on_from_its_own_weights(shipped: Checkpoint, tmp_path: Path) -> None:
    working = saved(tmp_path / "w")
    assert same(working.start(FINAL, [], shipped), 1)
    assert same(working.start(fold_name(0), ["a"], shipped), 2)


def test_a_fold_never_starts_from_weights_that_saw_its_patients(shipped: Checkpoint, tmp_path: Path) -> None:
    working = saved(tmp_path / "w")
    assert same(working.start(fold_name(1), ["b"], shipped), 0)  # all patients: seen; so the shipped weights
    assert same(working.start(fold_name(2), ["new"], shipped), 1)  # seen by nobody: the weights of all patients
    assert same(working.start(fold_name(0), ["a", "b"], shipped), 0)


def test_after_an_upgrade_or_a_rollback_they_do_not_belong_any_more(shipped: Checkpoint, tmp_path: Path) -> None:
    saved(tmp_path / "w", serving=3)
    assert same(WorkingWeights(tmp_path / "w", base="0123456789ab", serving=3).start(FINAL, [], shipped), 1)
    assert same(WorkingWeights(tmp_path / "w", base="0123456789ab", serving=2).start(FINAL, [], shipped), 0)
    assert same(WorkingWeights(tmp_path / "w", base="another00000", serving=3).start(FINAL, [], shipped), 0)


@pytest.mark.parametrize("damage", ["cut", "json", "gone"])
def test_damaged_weights_are_not_gone_on_from(shipped: Checkpoint, tmp_path: Path, damage: str) -> None:
    working = saved(tmp_path / "w")
    weights, description = (tmp_path / "w" / f"{FINAL}{suffix}" for suffix in (".safetensors", ".json"))
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "json":
        description.write_text("{")
    else:
        weights.unlink()
    assert same(working.start(FINAL, [], shipped), 0)


def score(mode: str, structure: str, case: str, dice: float) -> Score:
    return Score(mode, structure, case, dice, 0, np.zeros((2, 2), bool))


def test_scores_are_kept_by_weights_and_label(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    known = JudgedScores(path)
    keys = {"a1": "a1:x", "a2": "a2:x", "b": "b:x"}
    found = [score("semantic", "liver", case, dice) for case, dice in (("a1", 0.5), ("a2", 0.7), ("b", 0.9))]
    known.add("v1", found, keys, ["semantic"], 2)
    known.save(["v1"])
    known = JudgedScores(path)
    assert known.missing("v1", keys.values(), ["semantic"], 2) == []
    assert known.missing("v1", ["a1:x", "a1:corrected"], ["semantic"], 2) == ["a1:corrected"]
    assert known.missing("v1", ["b:x"], ["semantic", "in_context"], 2) == ["b:x"]
    assert known.missing("v1", ["b:x"], ["semantic"], 3) == ["b:x"]  # now there are more references
    patients = {"a1:x": "a", "a2:x": "a", "b:x": "b"}
    assert known.by_patient("v1", ("semantic", "liver"), patients) == {"a": pytest.approx(0.6), "b": 0.9}
    assert known.by_patient("v2", ("semantic", "liver"), patients) == {}
    known.rename("v1", "v2")
    assert JudgedScores(path).by_patient("v2", ("semantic", "liver"), patients)["b"] == 0.9
    known.save([])
    assert JudgedScores(path).by_patient("v2", ("semantic", "liver"), patients) == {}


def test_a_damaged_file_of_scores_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("[")
    assert JudgedScores(tmp_path / "scores.json").missing("v1", ["a"], ["semantic"], 1) == ["a"]


def test_scores_of_another_measure_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    known = JudgedScores(path)
    known.add("v1", [score("interactive", "liver", "a", 0.9)], {"a": "a:x"}, ["interactive"], 1)
    known.save(["v1"])
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content["scores"]))  # as they were kept before there was a measure
    assert JudgedScores(path).missing("v1", ["a:x"], ["interactive"], 1) == ["a:x"]
    path.write_text(json.dumps({**content, "measure": "another"}))
    assert JudgedScores(path).by_patient("v1", ("interactive", "liver"), {"a:x": "a"}) == {}
