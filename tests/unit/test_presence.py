# SPDX-License-Identifier: Apache-2.0
"""The presence head, fitted at the end of a training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kprism_model.data.augment import Augmentation
from kprism_model.data.building import build_store
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.presence import PresenceInputs, balanced_accuracy, balanced_weights, fit_presence
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64


@pytest.fixture
def sampler(tmp_path: Path) -> Sampler:
    """Pictures with a large box and others with a small one, of two modalities."""
    folders = [
        write_dataset(
            tmp_path / name,
            [rectangle((SIZE, SIZE), slice(4, 4 + side), slice(start, start + side)) for start in (2, 4, 6, 8)],
            classes=[name],
            modality=modality,
        )
        for name, modality, side in (("large", "MRI", 50), ("small", "CT", 10))
    ]
    store = build_store(folders, tmp_path / "store", size=SIZE, progress=False)
    return Sampler(
        store, seed=0, mixture=Mixture(absent=0.2, synthetic=0.1, regions=0.0), augmentation=Augmentation.none()
    )


def test_the_head_is_fitted_and_nothing_else_changes(sampler: Sampler) -> None:
    torch.manual_seed(0)
    model = KPrism(KPrismConfig.tiny(num_classes=2, native_size=SIZE))
    nn.init.constant_(model.decoder.presence[2].bias, 5.0)  # as after a training that asks for what is there
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = fit_presence(model, sampler, batches=10, progress=False)
    assert told["before"] == 0.5 and told["after"] >= 0.7
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("decoder.presence.") for name in changed)


def test_nothing_to_look_at_leaves_the_head(sampler: Sampler) -> None:
    model = KPrism(KPrismConfig.tiny(num_classes=2, native_size=SIZE))
    before = model.decoder.presence[0].weight.clone()
    assert fit_presence(model, sampler, batches=1, progress=False) == {}
    assert torch.equal(model.decoder.presence[0].weight, before)


def test_present_and_absent_rows_of_each_group_weigh_the_same() -> None:
    present = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    group = torch.tensor([0, 0, 0, 0, 3, 3])
    weights = balanced_weights(PresenceInputs(torch.zeros(6, 2), present, group))
    assert weights.tolist() == pytest.approx([0.5, 0.5, 0.5, 1.5, 1.5, 1.5])


def test_accuracy_is_balanced_over_groups_that_have_both() -> None:
    head = nn.Linear(1, 1)
    nn.init.ones_(head.weight), nn.init.zeros_(head.bias)
    inputs = torch.tensor([[1.0], [1.0], [1.0], [-1.0], [2.0], [5.0]])
    rows = PresenceInputs(inputs, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 0, 0, 1]))
    assert balanced_accuracy(head, rows) == pytest.approx((1.0 + 0.5) / 2)
