# SPDX-License-Identifier: Apache-2.0
"""Starting from other weights: what fits is taken, classes go by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.weights import warm_start


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = KPrism(KPrismConfig.tiny(num_classes=2))
    save_checkpoint(tmp_path / "old", model, ClassRegistry(["lung", "liver"]), metadata={})
    return tmp_path / "old"


def test_all_that_fits_is_taken_and_classes_go_by_name(saved: Path) -> None:
    source = load_checkpoint(saved)
    model = KPrism(KPrismConfig.tiny(num_classes=3))
    spleen = model.decoder.class_content[0].clone()
    assert warm_start(model, ClassRegistry(["spleen", "Liver", "lung"]), source) == []
    assert torch.equal(model.decoder.class_content[0], spleen)
    assert torch.equal(model.decoder.class_content[1], source.model.decoder.class_content[1])
    assert torch.equal(model.decoder.class_position[2], source.model.decoder.class_position[0])
    stem = "image_encoder.stem.0.conv1.weight"
    assert torch.equal(model.state_dict()[stem], source.model.state_dict()[stem])


def test_other_shapes_are_named_and_start_anew(saved: Path) -> None:
    model = KPrism(KPrismConfig.tiny(num_classes=2, head_channels=16))
    left = warm_start(model, ClassRegistry(["lung", "liver"]), load_checkpoint(saved))
    assert left and all(name.startswith("decoder.heads.") for name in left)
