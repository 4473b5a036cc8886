# SPDX-License-Identifier: Apache-2.0
"""The mean of several networks, whose classes may differ."""

from __future__ import annotations

import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.weights import average_weights


def filled(value: float, *names: str) -> tuple[KPrism, ClassRegistry]:
    """A network whose weights all have one value, with kinds of images for which only its first class is possible."""
    config = KPrismConfig.tiny(num_classes=len(names), kinds=("CT", "MR"))
    model = KPrism(config).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(value)
        assert model.kind_head is not None
        model.kind_head.possible.fill_(False)
        model.kind_head.possible[0] = True
    return model, ClassRegistry(names)


def test_weights_are_averaged_and_classes_by_name() -> None:
    networks = [filled(1.0, "liver", "spleen"), filled(4.0, "spleen", "liver"), filled(7.0, "liver", "spleen", "cyst")]
    model, registry = average_weights(networks)
    assert registry.names == ("liver", "spleen", "cyst") and not model.training
    assert torch.allclose(model.decoder.heads[0].last.bias, torch.tensor(4.0))
    content = model.decoder.class_content
    assert [float(row.mean()) for row in content] == pytest.approx([4.0, 4.0, 7.0])
    assert model.kind_head is not None
    assert model.kind_head.possible.any(1).tolist() == [True, True, False]


def test_the_mean_of_one_network_is_that_network() -> None:
    model, registry = filled(2.0, "liver")
    mean, names = average_weights([(model, registry)])
    assert names.names == ("liver",)
    assert all(torch.equal(value, mean.state_dict()[name]) for name, value in model.state_dict().items())


def test_shares_weigh_the_networks_and_a_class_is_mixed_with_the_same_class() -> None:
    model, registry = average_weights([filled(1.0, "spleen", "cyst"), filled(5.0, "liver", "spleen")], [0.75, 0.25])
    assert registry.names == ("spleen", "cyst", "liver")
    assert torch.allclose(model.decoder.heads[0].last.bias, torch.tensor(2.0))
    assert [float(row.mean()) for row in model.decoder.class_content] == pytest.approx([2.0, 1.0, 5.0])
    whole, names = average_weights([filled(1.0, "spleen"), filled(5.0, "liver")], [1.0, 0.0])
    assert names.names == ("spleen",) and torch.allclose(whole.decoder.heads[0].last.bias, torch.tensor(1.0))


def test_there_must_be_a_network() -> None:
    with pytest.raises(ValueError, match="no networks to average"):
        average_weights([])
