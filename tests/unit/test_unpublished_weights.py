# SPDX-License-Identifier: Apache-2.0
"""Weights that were trained and not published: which training goes on from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib.trainers.unpublished_weights import UnpublishedWeights


def checkpoint(folder: Path, names: list[str], version: str, **changes: int) -> Checkpoint:
    torch.manual_seed(len(names))
    model = KPrism(KPrismConfig.tiny(num_classes=len(names), **changes)).eval()
    return Checkpoint(model, ClassRegistry(names), {}, version, folder / f"{version}.safetensors")


@pytest.fixture
def served(tmp_path: Path) -> Checkpoint:
    return checkpoint(tmp_path, ["liver"], "0123456789ab")


def test_a_training_goes_on_from_what_was_not_published(served: Checkpoint, tmp_path: Path) -> None:
    unpublished = UnpublishedWeights(tmp_path)
    assert unpublished.start(served) is served
    tuned = checkpoint(tmp_path, ["liver", "tumour"], "not yet known")
    unpublished.save(tuned.model, tuned.registry, served)
    start = UnpublishedWeights(tmp_path).start(served)
    assert start.registry.names == ("liver", "tumour")
    assert torch.equal(start.model.decoder.class_content, tuned.model.decoder.class_content)


def test_what_is_of_another_version_damaged_or_forgotten_does_not_count(
    served: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unpublished = UnpublishedWeights(tmp_path)
    unpublished.save(served.model, served.registry, served)
    other = replace(served, weights_version="ba9876543210")
    assert unpublished.start(other) is other
    weights = tmp_path / "unpublished.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert unpublished.start(served) is served
    assert "unpublished weights cannot be used" in caplog.text
    unpublished.save(served.model, served.registry, served)
    unpublished.remove()
    assert unpublished.start(served) is served and not list(tmp_path.glob("unpublished*"))


def test_weights_of_an_earlier_network_are_no_start_and_stay(served: Checkpoint, tmp_path: Path) -> None:
    unpublished = UnpublishedWeights(tmp_path)
    unpublished.save(served.model, served.registry, served)
    new = checkpoint(tmp_path, ["liver"], served.weights_version, base_channels=4)
    assert unpublished.start(new) is new
    assert unpublished.start(served) is not served
