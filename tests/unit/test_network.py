# SPDX-License-Identifier: Apache-2.0
"""The network as a whole: shapes, batching, padding, determinism, new classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.network.layers import GroupNorm, PointwiseConv
from kprism_model.network.prompts import Prompts, click_discs


@pytest.fixture
def model() -> KPrism:
    torch.manual_seed(0)
    return KPrism(KPrismConfig.tiny()).eval()


def _prompts(size: tuple[int, int], kind: str, model: KPrism, rows: int = 1) -> Prompts:
    height, width = size
    knowledge: dict[str, Any] = {}
    if kind.startswith("class"):
        knowledge["class_index"] = torch.arange(rows) % model.config.num_classes
    if kind.startswith("references"):
        images = torch.rand(1, 2, 3, height, width)
        knowledge["references"] = model.encode_references(images, (images[:, :, :1] > 0.5).float())
    if kind.endswith("clicks"):
        points = torch.tensor([[[5.0, 9.0], [20.0, 30.0]]]).expand(rows, -1, -1)
        labels = torch.tensor([[1, 0]]).expand(rows, -1)
        discs = click_discs(points, labels, size)
        knowledge.update(points=points, point_labels=labels, dense=torch.cat([discs, discs[:, :1] * 0.3], dim=1))
    return Prompts(size, torch.zeros(rows, dtype=torch.long), **knowledge)


KINDS = ("class", "class+clicks", "clicks", "references", "references+clicks")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 32), (128, 64)])
def test_every_combination_answers_at_any_legal_size(model: KPrism, kind: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        decoded = model(torch.rand(1, 3, *size), _prompts(size, kind, model))
    strides = [16, 8, 4][: model.config.layers]
    assert [tuple(layer.shape) for layer in decoded.logits] == [(1, 1, size[0] // s, size[1] // s) for s in strides]
    assert all(layer.isfinite().all() for layer in decoded.logits)
    assert decoded.presence.shape == (1,)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_deterministic(model: KPrism, kind: str) -> None:
    torch.manual_seed(1)
    image = torch.rand(1, 3, 64, 64)
    prompts = _prompts((64, 64), kind, model)
    with torch.inference_mode():
        first, second = (model(image, prompts).logits[-1] for _ in range(2))
    assert torch.equal(first, second)


def test_many_images_and_classes_in_one_call_equal_single_calls(model: KPrism) -> None:
    images = torch.rand(2, 3, 64, 96)
    image_index, class_index = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3, 1, 0])
    with torch.inference_mode():
        together = model(images, Prompts((64, 96), image_index, class_index=class_index))
        for row, (image, number) in enumerate(zip(image_index, class_index, strict=True)):
            alone = model(images[image][None], Prompts((64, 96), torch.tensor([0]), class_index=number[None]))
            torch.testing.assert_close(together.logits[-1][row], alone.logits[-1][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.presence[row], alone.presence[0], atol=1e-5, rtol=0)


def test_padding_changes_nothing(model: KPrism) -> None:
    image = torch.rand(1, 3, 64, 64)
    points, labels = torch.tensor([[[10.0, 12.0], [40.0, 50.0]]]), torch.tensor([[1, 0]])
    padded_points = torch.cat([points, torch.full((1, 3, 2), -1.0)], dim=1)
    padded_labels = torch.cat([labels, torch.full((1, 3), -1)], dim=1)
    index = torch.tensor([0])
    with torch.inference_mode():
        plain = model(image, Prompts((64, 64), index, points=points, point_labels=labels))
        padded = model(image, Prompts((64, 64), index, points=padded_points, point_labels=padded_labels))
    torch.testing.assert_close(plain.logits[-1], padded.logits[-1], atol=1e-5, rtol=0)


def test_a_click_moves_the_answer(model: KPrism) -> None:
    """Click tokens carry knowledge of their own: the same dense map with another click is another answer."""
    image, index = torch.rand(1, 3, 64, 64), torch.tensor([0])

    def answer(row: float) -> Tensor:
        prompts = Prompts((64, 64), index, points=torch.tensor([[[row, 12.0]]]), point_labels=torch.tensor([[1]]))
        return model(image, prompts).logits[-1]

    with torch.inference_mode():
        assert (answer(10.0) - answer(50.0)).abs().max() > 1e-4


def test_new_classes_change_no_existing_output(model: KPrism) -> None:
    image = torch.rand(1, 3, 64, 64)
    prompts = Prompts((64, 64), torch.zeros(4, dtype=torch.long), class_index=torch.arange(4))
    with torch.inference_mode():
        before = model(image, prompts)
        model.add_classes(3)
        after = model(image, prompts)
    assert model.config.num_classes == 7
    assert torch.equal(before.logits[-1], after.logits[-1])
    assert torch.equal(before.presence, after.presence)


def test_one_set_of_references_serves_many_rows(model: KPrism) -> None:
    images = torch.rand(3, 3, 64, 64)
    references = model.encode_references(torch.rand(1, 2, 3, 64, 64), torch.ones(1, 2, 1, 64, 64))
    with torch.inference_mode():
        decoded = model(images, Prompts((64, 64), torch.arange(3), references=references))
    assert decoded.logits[-1].shape == (3, 1, *decoded.logits[-1].shape[2:])


@pytest.mark.parametrize("size", [(60, 64), (64, 33), (0, 32)])
def test_illegal_sizes_are_refused(model: KPrism, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32, got {size[0]} x {size[1]}"):
        model.encode_image(torch.zeros(1, 3, *size))


def test_contradicting_prompts_are_refused(model: KPrism) -> None:
    index = torch.tensor([0])
    references = model.encode_references(torch.rand(1, 1, 3, 64, 64), torch.ones(1, 1, 1, 64, 64))
    with pytest.raises(ValueError, match="not both"):
        Prompts((64, 64), index, class_index=index, references=references)
    with pytest.raises(ValueError, match="class, references or points"):
        Prompts((64, 64), index)
    with pytest.raises(ValueError, match="points has 2 rows, image_index has 1"):
        Prompts((64, 64), index, points=torch.zeros(2, 1, 2), point_labels=torch.ones(1, 1, dtype=torch.long))


def test_click_discs_are_cut_at_the_border() -> None:
    points = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [-1.0, -1.0]]])
    discs = click_discs(points, torch.tensor([[1, 0, -1]]), (8, 8))
    assert discs[0, 0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0]]
    assert discs[0, 1].nonzero().tolist() == [[2, 4], [3, 3], [3, 4], [3, 5], [4, 4]]


@pytest.mark.parametrize("gradients", [True, False])
def test_group_norm_is_accurate_on_a_nearly_constant_channels_last_map(gradients: bool) -> None:
    torch.manual_seed(0)
    x = (1000 + torch.rand(1, 32, 64, 64) * 1e-2).contiguous(memory_format=torch.channels_last)
    exact = torch.nn.functional.group_norm(x.double(), 32)
    with torch.set_grad_enabled(gradients):
        assert (GroupNorm(32)(x) - exact).abs().max() < 0.05 * exact.abs().max()


def test_group_norm_is_the_same_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 8, 9).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(64)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        alone = norm(x)
    torch.testing.assert_close(alone, norm(x).detach())


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution_is_a_1x1_convolution(stride: int) -> None:
    layer = PointwiseConv(6, 5, stride).double()
    x = torch.randn(2, 6, 8, 10, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, stride)
    assert (layer(x) - expected).abs().max() < 1e-14


def test_presets_have_their_stated_sizes() -> None:
    # The published 43.3 M hold 2.8 M of layers that no forward pass uses; they have no place here.
    base = sum(parameter.numel() for parameter in KPrism(KPrismConfig.base()).parameters())
    assert abs(base - 40.6e6) < 0.1e6
    small = sum(parameter.numel() for parameter in KPrism(KPrismConfig.small()).parameters())
    assert small * 4 < 30e6


def test_configurations_survive_a_round_trip_and_refuse_nonsense() -> None:
    config = KPrismConfig.small(num_classes=11, kinds=("CT", "MRI"), kind_centres=(2, 1))
    assert KPrismConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="configuration keys: unknown colour"):
        KPrismConfig.from_dict({**config.to_dict(), "colour": 1})
    with pytest.raises(ValueError, match="configuration keys: missing width"):
        KPrismConfig.from_dict({name: value for name, value in config.to_dict().items() if name != "width"})
    with pytest.raises(
        ValueError, match=r"kind_centres must be empty or a positive integer for each of 2 kinds, got \[3\]"
    ):
        KPrismConfig.small(kinds=("CT", "MRI"), kind_centres=(3,))
    with pytest.raises(ValueError, match="width must be a multiple of 32, got 100"):
        KPrismConfig.small(width=100)
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        KPrismConfig.preset("huge")


def test_the_kept_empty_map_follows_the_weights() -> None:
    torch.manual_seed(0)
    model = KPrism(KPrismConfig.tiny()).eval()
    prompts = Prompts((64, 64), torch.tensor([0]), class_index=torch.tensor([1]))
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = model(image, prompts).logits[-1]
        assert torch.equal(model(image, prompts).logits[-1], before)
    with torch.no_grad():
        model.dense_encoder.downs[0][0].bias.add_(1.0)
        after = model(image, prompts).logits[-1]
        explicit = model(image, replace(prompts, dense=torch.zeros(1, 3, 64, 64))).logits[-1]
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, explicit)


def test_a_network_made_in_inference_mode_answers_and_follows_its_weights() -> None:
    prompts = Prompts((64, 64), torch.tensor([0]), class_index=torch.tensor([1]))
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        model = KPrism(KPrismConfig.tiny()).eval()
        before = model(image, prompts).logits[-1]
        model.dense_encoder.downs[0][0].bias.add_(1.0)
        assert not torch.allclose(model(image, prompts).logits[-1], before)
