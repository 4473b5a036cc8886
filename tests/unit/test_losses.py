# SPDX-License-Identifier: Apache-2.0
"""Losses against values worked out by hand, and their minima."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.losses.dice import DiceCELoss, DiceLoss
from torch import nn
from torch.nn import functional as F

from kprism_model.losses import dice_loss, mask_loss, presence_loss


def binary_target(size: int = 32) -> torch.Tensor:
    target = torch.zeros(2, 1, size, size)
    target[0, :, 8:24, 8:24] = 1
    target[1, :, : size // 2] = 1
    return target


def test_dice_loss_of_a_known_overlap() -> None:
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    logits = torch.full((1, 1, 4, 4), -100.0)
    logits[..., 1:3] = 100.0  # 8 pixels, 4 of them right
    assert dice_loss(logits, target).item() == pytest.approx(1 - (2 * 4 + 1) / (8 + 8 + 1))


def seeded(*, soft: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (3, 1, 24, 20) and a target of zeros and ones, or of values between."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 1, 24, 20, generator=generator)
    target = torch.rand(3, 1, 24, 20, generator=generator)
    return logits, target if soft else (target > 0.7).float()


def assert_equal_values_and_gradients(ours: torch.Tensor, monais: torch.Tensor, logits: torch.Tensor) -> None:
    torch.testing.assert_close(ours, monais, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, monais)]
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("soft", [False, True])
def test_dice_loss_is_that_of_monai(soft: bool, seed: int) -> None:
    logits, target = seeded(soft=soft, seed=seed)
    logits.requires_grad_()
    monais = DiceLoss(sigmoid=True, soft_label=True, smooth_nr=1.0, smooth_dr=1.0)
    assert_equal_values_and_gradients(dice_loss(logits, target), monais(logits, target), logits)


@pytest.mark.parametrize("soft", [False, True])
def test_a_layer_of_mask_loss_is_that_of_monai(soft: bool) -> None:
    """MONAI's DiceCELoss has no soft labels, so on a soft target the parts are added up here."""
    logits, target = seeded(soft=soft, seed=7)
    logits.requires_grad_()
    if soft:
        dice = DiceLoss(sigmoid=True, soft_label=True, smooth_nr=1.0, smooth_dr=1.0)
        expected = 5 * dice(logits, target) + 5 * nn.BCEWithLogitsLoss()(logits, target)
    else:
        both = DiceCELoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, lambda_dice=5.0, lambda_ce=5.0)
        expected = both(logits, target)
    assert_equal_values_and_gradients(mask_loss([logits], target), expected, logits)


def test_dice_loss_on_a_binary_target_is_the_product_form() -> None:
    target, logits = binary_target(), torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    p = logits.sigmoid()
    expected = 1 - (2 * (p * target).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    assert dice_loss(logits, target).item() == pytest.approx(expected.mean().item(), abs=1e-6)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_dice_loss_on_a_soft_target_is_least_at_the_target(wanted: float, other: float) -> None:
    target = torch.full((1, 1, 8, 8), wanted)
    at_target = dice_loss(torch.full_like(target, math.log(wanted / (1 - wanted))), target)
    elsewhere = dice_loss(torch.full_like(target, math.log(other / (1 - other))), target)
    assert at_target.item() == pytest.approx(0, abs=1e-5)
    assert elsewhere.item() >= at_target.item() - 1e-6


def test_mask_loss_of_undecided_logits() -> None:
    target = torch.zeros(1, 1, 32, 32)
    target[..., :16] = 1
    logits = [torch.zeros(1, 1, size, size) for size in (2, 4, 8)]
    # p = 0.5 everywhere: the overlap is a quarter of the pixels, p and the target sum to half of them each; BCE is ln 2
    dice = [1 - (2 * n / 4 + 1) / (n + 1) for n in (4, 16, 32 * 32)]
    assert mask_loss(logits, target).item() == pytest.approx(5 * sum(dice) / 3 + 5 * math.log(2), rel=1e-5)


def test_mask_loss_of_perfect_logits_is_close_to_zero() -> None:
    target = torch.zeros(1, 1, 64, 64)
    target[..., :32, :] = 1
    logits = [20 * (2 * F.interpolate(target, size=size, mode="area") - 1) for size in ((4, 4), (8, 8), (64, 64))]
    assert mask_loss(logits, target).item() < 1e-3


def test_mask_loss_weights_its_two_parts() -> None:
    target = binary_target()
    logits = [torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(size)) for size in (2, 4, 8)]
    parts = [mask_loss(logits, target, dice_weight=d, bce_weight=b).item() for d, b in ((5, 0), (0, 5), (5, 5))]
    assert parts[0] + parts[1] == pytest.approx(parts[2], rel=1e-6)


def test_gradient_descent_reaches_the_mask() -> None:
    target = binary_target()
    logits = [torch.zeros(2, 1, size, size, requires_grad=True) for size in (2, 4, 8)]
    optimizer = torch.optim.Adam(logits, lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        mask_loss(logits, target).backward()
        optimizer.step()
    final = F.interpolate(logits[-1], size=(32, 32), mode="bilinear") > 0
    assert (final == (target > 0.5)).float().mean() > 0.95


def test_every_layer_gets_a_finite_gradient_even_for_an_empty_target() -> None:
    logits = [torch.zeros(1, 1, size, size, requires_grad=True) for size in (2, 4, 8)]
    mask_loss(logits, torch.zeros(1, 1, 32, 32)).backward()
    assert all(layer.grad is not None and (layer.grad > 0).all() for layer in logits)
    assert all(torch.isfinite(layer.grad).all() for layer in logits)


def test_presence_loss_value() -> None:
    loss = presence_loss(torch.tensor([0.0, 2.0]), torch.tensor([True, False]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one decoder layer"):
        mask_loss([], torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"\(3, 1, 8, 8\) and \(2, 1, 8, 8\)"):
        mask_loss([torch.zeros(3, 1, 2, 2)], torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"\(4,\) and \(2,\)"):
        presence_loss(torch.zeros(4), torch.zeros(2))


def test_rows_of_weight_zero_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    target = binary_target().repeat(2, 1, 1, 1)
    logits = [torch.randn(4, 1, size, size, generator=generator, requires_grad=True) for size in (2, 4, 8)]
    weight = torch.tensor([1.0, 0.0, 0.0, 1.0])
    chosen = mask_loss([layer[[0, 3]] for layer in logits], target[[0, 3]])
    weighted = mask_loss(logits, target, row_weight=weight)
    assert weighted.item() == pytest.approx(chosen.item(), rel=1e-6)
    weighted.backward()
    assert all(layer.grad is not None and (layer.grad[1:3] == 0).all() and layer.grad[0].any() for layer in logits)
    present = torch.tensor([1.0, 0.0, 1.0, 0.0])
    presence = torch.tensor([0.3, 5.0, -7.0, 1.0])
    expected = presence_loss(presence[[0, 3]], present[[0, 3]]).item()
    assert presence_loss(presence, present, row_weight=weight).item() == pytest.approx(expected)


def test_weights_of_one_change_nothing_and_weights_of_zero_leave_nothing() -> None:
    target = binary_target()
    logits = [torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(size)) for size in (2, 4, 8)]
    alike = mask_loss(logits, target, row_weight=torch.full((2,), 0.3))
    assert alike.item() == pytest.approx(mask_loss(logits, target).item(), rel=1e-6)
    assert mask_loss(logits, target, row_weight=torch.zeros(2)).item() == 0
    assert presence_loss(torch.zeros(2), torch.ones(2), row_weight=torch.zeros(2)).item() == 0
    with pytest.raises(ValueError, match=r"row_weight must have shape \(2,\), not \(3,\)"):
        mask_loss(logits, target, row_weight=torch.ones(3))
