# SPDX-License-Identifier: Apache-2.0
"""Folded mixtures of experts equal the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kprism_model.network.experts import MixtureCrossAttention, MixtureFeedForward

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}


def _layer(dtype: torch.dtype) -> MixtureCrossAttention:
    layer = MixtureCrossAttention(width=64, heads=8, experts=5).to(dtype)
    for bias in (layer.in_bias, layer.out_bias):  # zero after construction; the folded forms must carry them
        torch.nn.init.normal_(bias)
    return layer


def _inputs(targets: int, sources: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    target, source = torch.randn(2, targets, 64, dtype=dtype), torch.randn(2, sources, 64, dtype=dtype)
    return target, source, torch.randn(2, targets, 64, dtype=dtype), torch.randn(sources, 64, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 6, 30])
@pytest.mark.parametrize("masked", [False, True])
def test_fold_queries_equals_plain(dtype: torch.dtype, tokens: int, masked: bool) -> None:
    layer = _layer(dtype)
    target, source, target_position, source_position = _inputs(tokens, 200, dtype)
    blocked = torch.rand(2, tokens, 200) < 0.5 if masked else None
    arguments = target + target_position, source + source_position, source, layer.gate(target), blocked
    difference = (layer.fold_queries(*arguments) - layer.plain(*arguments)).abs().max()
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 6, 30])
@pytest.mark.parametrize("masked", [False, True])
def test_fold_keys_equals_plain(dtype: torch.dtype, tokens: int, masked: bool) -> None:
    layer = _layer(dtype)
    target, source, target_position, source_position = _inputs(200, tokens, dtype)
    blocked = None
    if masked:
        blocked = torch.zeros(2, 1, tokens, dtype=torch.bool)
        blocked[:, :, 1::2] = True
    arguments = target + target_position, source + source_position, source, layer.gate(target), blocked
    difference = (layer.fold_keys(*arguments) - layer.plain(*arguments)).abs().max()
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize(("targets", "sources"), [(5, 300), (300, 5), (100, 120)])
def test_forward_is_the_same_whichever_way_it_takes(targets: int, sources: int) -> None:
    layer = _layer(torch.float64)
    target, source, target_position, source_position = _inputs(targets, sources, torch.float64)
    out = layer(target, source, target_position, source_position)
    plain = layer.plain(target + target_position, source + source_position, source, layer.gate(target), None)
    assert (out - layer.norm(target + plain)).abs().max() <= 1e-13


def test_gradients_of_the_folded_form_equal_those_of_the_plain_one() -> None:
    layer = _layer(torch.float64)
    target, source, target_position, source_position = _inputs(4, 50, torch.float64)
    arguments = target + target_position, source + source_position, source, layer.gate(target), None
    gradients = [
        torch.autograd.grad(form(*arguments).square().sum(), [layer.in_weight, layer.out_weight], retain_graph=True)
        for form in (layer.fold_queries, layer.plain)
    ]
    for folded, plain in zip(*gradients, strict=True):
        assert (folded - plain).abs().max() <= 1e-10 * plain.abs().max()


def test_feed_forward_is_the_gated_sum_of_its_experts() -> None:
    layer = MixtureFeedForward(width=16, hidden=24, experts=3).double()
    for bias in (layer.bias1, layer.bias2):
        torch.nn.init.normal_(bias)
    tokens = torch.randn(2, 5, 16, dtype=torch.float64)
    gate = layer.gate(tokens)
    expected = torch.zeros_like(tokens)
    for expert in range(3):
        hidden = (tokens @ layer.weight1[expert].T + layer.bias1[expert]).relu()
        expected += gate[..., expert : expert + 1] * (hidden @ layer.weight2[expert].T + layer.bias2[expert])
    assert (layer(tokens) - layer.norm(tokens + expected)).abs().max() <= 1e-14
