# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what is saved comes back bit for bit, and what does not fit is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from kprism_model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor

NAMES = ("liver", "left ventricle", "polyp", "nerve")
METADATA = {"training": {"minutes": 90, "seed": 0}, "metrics": {"dice": 0.87, "hd95": None}}


@pytest.fixture
def model() -> KPrism:
    return KPrism(KPrismConfig.tiny())


@pytest.fixture
def saved(tmp_path: Path, model: KPrism) -> Path:
    """The stem of a checkpoint of `model`."""
    stem = tmp_path / "weights-v1.2"
    save_checkpoint(stem, model, ClassRegistry(NAMES), metadata=METADATA)
    return stem


def beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def edit_description(stem: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = beside(stem, ".json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(stem: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors and write a description whose hash fits them."""
    path = beside(stem, ".safetensors")
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_description(stem, lambda content: content.update(sha256=digest, weights_version=digest[:12]))


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".json"])
def test_everything_comes_back_by_either_name(saved: Path, model: KPrism, suffix: str) -> None:
    loaded = load_checkpoint(beside(saved, suffix))
    assert loaded.registry.names == NAMES
    assert loaded.model.config == model.config
    assert loaded.metadata == METADATA
    assert loaded.path == beside(saved, ".safetensors")
    assert not any(module.training for module in loaded.model.modules())
    state = loaded.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


def test_a_loaded_model_answers_with_the_same_bits(saved: Path, model: KPrism) -> None:
    image = np.random.default_rng(0).random((50, 37), dtype=np.float32)
    answers = []
    for network in (model, load_checkpoint(saved).model):
        predictor = Predictor(network, ClassRegistry(NAMES))
        predictor.set_image(image)
        answers.append(predictor.predict(class_name="polyp").probability)
    np.testing.assert_array_equal(answers[0], answers[1])


def test_the_pair_is_readable_and_nothing_else_is_left(saved: Path) -> None:
    assert sorted(path.name for path in saved.parent.iterdir()) == ["weights-v1.2.json", "weights-v1.2.safetensors"]
    content = json.loads(beside(saved, ".json").read_text())
    digest = hashlib.sha256(beside(saved, ".safetensors").read_bytes()).hexdigest()
    assert content["format_version"] == 1
    assert content["classes"] == list(NAMES)
    assert (content["sha256"], content["weights_version"]) == (digest, digest[:12])
    assert content["preprocessing"] == {"size_multiple": 32, "percentiles": [0.5, 99.5], "ct_window": [-500.0, 500.0]}


def test_the_version_names_the_weights_alone(saved: Path, model: KPrism) -> None:
    first = load_checkpoint(saved).weights_version
    save_checkpoint(saved, model, ClassRegistry("abcd"[i] for i in range(4)), metadata={})
    assert load_checkpoint(saved).weights_version == first
    with torch.no_grad():
        model.level_embedding[0, 0] += 1
    save_checkpoint(saved, model, ClassRegistry(NAMES), metadata={})
    assert load_checkpoint(saved).weights_version != first


def test_half_precision_rounds_matrices_and_spares_vectors(tmp_path: Path, saved: Path, model: KPrism) -> None:
    save_checkpoint(tmp_path / "half", model, ClassRegistry(NAMES), metadata={}, dtype="float16")
    state = load_checkpoint(tmp_path / "half").model.state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], expected), name
    sizes = [beside(stem, ".safetensors").stat().st_size for stem in (tmp_path / "half", saved)]
    assert sizes[0] < 0.65 * sizes[1]


def test_a_network_that_has_grown_keeps_all_its_rows(tmp_path: Path, model: KPrism) -> None:
    model.add_classes(2)
    save_checkpoint(tmp_path / "grown", model, ClassRegistry(NAMES).add(["aorta", "rib"]), metadata={})
    loaded = load_checkpoint(tmp_path / "grown")
    assert loaded.registry.index("rib") == 5
    assert torch.equal(loaded.model.decoder.class_content, model.decoder.class_content)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".PTH"])
def test_pickles_are_refused_by_name(tmp_path: Path, model: KPrism, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match="pickled checkpoints can run code and are refused"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="pickled checkpoints"):
        save_checkpoint(path, model, ClassRegistry(NAMES), metadata={})


def test_a_pickle_under_another_name_is_refused_by_content(saved: Path, model: KPrism) -> None:
    path = beside(saved, ".safetensors")
    torch.save(model.state_dict(), path)
    edit_description(saved, lambda content: content.update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(CheckpointError, match=r"weights-v1.2.safetensors is not a safetensors file"):
        load_checkpoint(saved)


def test_changed_weights_are_noticed(saved: Path) -> None:
    path = beside(saved, ".safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has SHA-256 .* but .* expects"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=2), "has format_version 2, expected 1"),
        (lambda c: c.pop("format_version"), "has format_version None, expected 1"),
        (lambda c: c.pop("sha256"), "sha256 must be a str, got None"),
        (lambda c: c.update(classes="liver"), "classes must be a list, got 'liver'"),
        (lambda c: c["classes"].pop(), "3 class names for num_classes 4"),
        (lambda c: c.update(classes=["a", "b", "c", "A"]), "class 'A' is listed twice"),
        (lambda c: c["config"].update(colour=1), "configuration keys: unknown colour"),
        (lambda c: c["config"].update(width=33), "width must be a multiple of 32, got 33"),
        (lambda c: c["preprocessing"].update(ct_window=[-160, 240]), r"expect the preprocessing .*-160.* has .*-500"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_description(saved, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(saved)
    assert str(beside(saved, ".json")) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("level_embedding"), r"level_embedding: found nothing, expected \(3, 32\)"),
        (lambda t: t.update(extra=torch.zeros(2)), r"extra: found \(2,\), expected nothing"),
        (
            lambda t: t.update(level_embedding=torch.zeros(3, 16)),
            r"level_embedding: found \(3, 16\), expected \(3, 32\)",
        ),
        (lambda t: t.clear(), r"found nothing.* and \d+ more"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    edit_tensors(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_file_that_the_disk_does_not_give_is_named(saved: Path, suffix: str) -> None:
    path = beside(saved, suffix)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=f"weights-v1.2{suffix} cannot be read"):
        load_checkpoint(saved)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_missing_file_is_named(saved: Path, suffix: str) -> None:
    beside(saved, suffix).unlink()
    with pytest.raises(CheckpointError, match=f"there is no checkpoint file .*weights-v1.2{suffix}"):
        load_checkpoint(saved)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_description_that_is_no_json_object_is_refused(saved: Path, text: str) -> None:
    beside(saved, ".json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"weights-v1.2.json (is not JSON|has format_version)"):
        load_checkpoint(saved)


def test_what_cannot_be_saved_leaves_the_old_pair_alone(saved: Path, model: KPrism) -> None:
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    with pytest.raises(CheckpointError, match="3 class names for 4 rows"):
        save_checkpoint(saved, model, ClassRegistry(NAMES[:3]), metadata={})
    for value in (float("nan"), object()):
        with pytest.raises(CheckpointError, match="metadata cannot be written as JSON"):
            save_checkpoint(saved, model, ClassRegistry(NAMES), metadata={"dice": value})
    with pytest.raises(CheckpointError, match="dtype must be 'float32' or 'float16', got 'bfloat16'"):
        save_checkpoint(saved, model, ClassRegistry(NAMES), metadata={}, dtype="bfloat16")
    with torch.no_grad():
        model.level_embedding[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"level_embedding holds values that are not finite as torch.float16"):
        save_checkpoint(saved, model, ClassRegistry(NAMES), metadata={}, dtype="float16")
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path: Path, model: KPrism) -> None:
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(OSError, match=r"taken.safetensors"):
        save_checkpoint(tmp_path / "taken", model, ClassRegistry(NAMES), metadata={})
    assert [path.name for path in tmp_path.iterdir()] == ["taken.safetensors"]
