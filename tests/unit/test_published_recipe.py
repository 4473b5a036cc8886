# SPDX-License-Identifier: Apache-2.0
"""The published numbers, schedule, and loss of a step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kprism_model.interaction import batched_clicks
from kprism_model.interaction.clicks import next_click
from kprism_model.losses import full_size_mask_loss
from kprism_model.network import decoder
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import Decoded, KPrism
from kprism_model.network.prompts import Prompts
from kprism_model.published.training.batch import StepBatch
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.published.training.step import PublishedStep
from kprism_model.training.schedule import MODES
from tests.unit.published_runs import RECIPE, SIZE
from tests.unit.unsynchronised import Unsynchronised


def test_the_defaults_are_the_published_values() -> None:
    recipe = PublishedRecipe()
    assert (recipe.size, recipe.batch, recipe.epochs, recipe.warmup_epochs) == (512, 16, 75, 10)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.final_rate, recipe.clip_norm) == (1e-4, 0.0, 0.1, 3.0)
    assert dict(zip(MODES, recipe.mode_shares, strict=True)) == {
        "semantic": 0.3,
        "in_context": 0.4,
        "interactive": 0.3,
    }
    assert (recipe.dice_weight, recipe.bce_weight, recipe.iterations, recipe.later_weight) == (5, 5, 3, 0.8)
    assert recipe.network(num_classes=33) == KPrismConfig.base() and recipe.network().experts == 5


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 1e-5),
        (4, 5e-5),
        (9, 1e-4),
        (10, 1e-4),
        (40, 1e-4 * (0.1 + 0.45 * (1 + math.cos(math.pi * 30 / 65)))),
        (74, 1e-4 * (0.1 + 0.45 * (1 + math.cos(math.pi * 64 / 65)))),
    ],
)
def test_the_rate_warms_up_and_falls_to_a_tenth(epoch: int, rate: float) -> None:
    assert PublishedRecipe().rate_at(epoch) == pytest.approx(rate, rel=1e-12)


def test_the_rate_is_never_zero_and_short_trainings_have_one() -> None:
    assert min(PublishedRecipe().rate_at(epoch) for epoch in range(75)) == 1e-5
    assert [replace(RECIPE, epochs=2).rate_at(epoch) for epoch in (0, 1)] == pytest.approx([1e-5, 2e-5])
    assert replace(RECIPE, epochs=1, warmup_epochs=0).rate_at(0) == 1e-4


@pytest.mark.parametrize(("slices", "steps"), [(160, 750), (161, 825), (1, 75)])
def test_an_epoch_has_as_many_images_as_there_are_slices(slices: int, steps: int) -> None:
    assert PublishedRecipe().steps_in_all(slices) == steps


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("preset", "huge", "unknown preset 'huge'"),
        ("size", 100, "size must be a multiple of 32, got 100"),
        ("size", 0, "size must be a multiple of 32, got 0"),
        ("batch", 0, "batch must be 1 or more, got 0"),
        ("epochs", -1, "epochs must be 1 or more, got -1"),
        ("warmup_epochs", -1, "warmup_epochs must be 0 or more, got -1"),
        ("iterations", 0, "iterations must be 1 to 20, got 0"),
        ("iterations", 21, "iterations must be 1 to 20, got 21"),
        ("mode_shares", (0.5, 0.5, 0.5), "three chances that sum to 1"),
        ("mode_shares", (1.0,), "three chances that sum to 1"),
    ],
)
def test_values_that_no_training_can_have_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PublishedRecipe(), **{field: value})


def by_hand(logits: list[Tensor], target: Tensor) -> float:
    """5 Dice + 5 BCE of each layer at full size, image by image and pixel by pixel."""
    total = 0.0
    for layer in logits:
        enlarged = F.interpolate(layer, target.shape[-2:], mode="bilinear", align_corners=False)
        dice, entropy = 0.0, 0.0
        for row, mask in zip(enlarged[:, 0], target[:, 0], strict=True):
            p = 1 / (1 + torch.exp(-row))
            overlap = float((p * mask).sum())
            dice += 1 - (2 * overlap + 1) / (float(p.sum()) + float(mask.sum()) + 1)
            entropy += float(-(mask * p.log() + (1 - mask) * (1 - p).log()).mean())
        total += 5 * dice / len(target) + 5 * entropy / len(target)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_sum_over_layers_at_full_size(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(3, 1, side, side, generator=generator) for side in (4, 8, 16, 4, 8, 16)]
    target = (torch.rand(3, 1, 64, 64, generator=generator) > 0.3 + 0.2 * seed).float()
    target[0] = 0
    assert float(full_size_mask_loss(logits, target)) == pytest.approx(by_hand(logits, target), rel=1e-5)
    one = full_size_mask_loss(logits, target, dice_weight=2.0, bce_weight=0.0)
    two = full_size_mask_loss(logits, target, dice_weight=1.0, bce_weight=0.0)
    assert float(one) == pytest.approx(2 * float(two), rel=1e-6)


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one decoder layer"):
        full_size_mask_loss([], torch.zeros(1, 1, 8, 8))


def batch(mode: str) -> StepBatch:
    generator = torch.Generator().manual_seed(4)
    count = 4 if mode == "in_context" else 2
    masks = torch.zeros(count, 1, SIZE, SIZE)
    masks[:, :, 8:40, 20:50] = 1
    return StepBatch(mode, torch.rand(count, 3, SIZE, SIZE, generator=generator), masks, torch.tensor([1, 0]))


class Recorded(KPrism):
    """The network, with the prompts that it was asked and what it answered."""

    def decode(self, *words: Any, **named: Any) -> Decoded:
        """As the network does."""
        answer = super().decode(*words, **named)
        self.asked.append((words[1], [layer.detach() for layer in answer.logits]))
        return answer

    asked: list[tuple[Prompts, list[Tensor]]]


@pytest.mark.parametrize("mode", MODES)
def test_a_step_corrects_its_masks_by_clicks(mode: str) -> None:
    """The prompts of each iteration, and the loss by hand: 1, 0.8 and 0.8 of the three masks."""
    torch.manual_seed(0)
    model = Recorded(RECIPE.network(num_classes=2))
    model.asked = []
    given = batch(mode)
    loss, dice = PublishedStep(model, RECIPE)(given)
    masks = given.masks[:2]
    prompts, answers = zip(*model.asked, strict=True)
    assert len(prompts) == 3
    expected = sum(weight * by_hand(list(layers), masks) for weight, layers in zip((1, 0.8, 0.8), answers, strict=True))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    first = prompts[0]
    assert (first.class_index is not None) == (mode == "semantic")
    assert (first.references is not None) == (mode == "in_context")
    assert (first.points is not None) == (mode == "interactive")
    clicks = 1 if mode == "interactive" else 0
    seen = [torch.zeros(2, 1, SIZE, SIZE)] if clicks else []
    for number, layers in enumerate(answers):
        probability = F.interpolate(layers[-1], (SIZE, SIZE), mode="bilinear", align_corners=False).sigmoid()
        found = (
            2
            * ((probability > 0.5) & (masks > 0.5)).sum((1, 2, 3))
            / ((probability > 0.5).sum((1, 2, 3)) + masks.sum((1, 2, 3)))
        )
        if number in (0, 2):
            assert float(dice[number // 2]) == pytest.approx(float(found.mean()), abs=1e-6)
        seen.append(probability)
    for number, asked in enumerate(prompts):
        if asked.points is None:
            assert number == 0 and asked.dense is None
            continue
        previous = seen[number - 1 + clicks]
        assert asked.points.shape == (2, number + clicks, 2) and asked.dense is not None
        torch.testing.assert_close(asked.dense[:, 2:], previous)
        for row in range(2):
            click = next_click((previous[row, 0] > 0.5).numpy(), (masks[row, 0] > 0.5).numpy())
            assert click is not None and asked.point_labels is not None
            assert (*asked.points[row, -1].tolist(), bool(asked.point_labels[row, -1])) == click


def test_an_image_without_an_error_gets_no_click() -> None:
    torch.manual_seed(0)
    model = Recorded(RECIPE.network(num_classes=2))
    model.asked = []
    given = batch("interactive")
    given.masks[1] = 0  # nothing to click on
    loss, _ = PublishedStep(model, replace(RECIPE, iterations=1))(given)
    labels = model.asked[0][0].point_labels
    assert labels is not None and labels.tolist() == [[1], [-1]]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


class ClicksOfGpus:
    """The clicks of a GPU, on this device."""

    def clicks(self, predictions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """As `CentralClicks` on a GPU."""
        points, labels = batched_clicks.next_clicks(predictions[:, 0] > 0.5, masks[:, 0] > 0.5)
        return points[:, None], labels[:, None]


@pytest.mark.parametrize("mode", MODES)
def test_a_step_on_a_gpu_waits_for_nothing_and_has_the_same_loss(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    step, given = PublishedStep(KPrism(RECIPE.network(num_classes=2)), RECIPE), batch(mode)
    expected, dice = step(given)
    monkeypatch.setattr(decoder, "_may_contain_padding", lambda padded: True)  # as on a GPU
    step._user = ClicksOfGpus()
    with Unsynchronised():
        loss, same_dice = step(given)
        loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert same_dice.tolist() == pytest.approx(dice.tolist(), abs=1e-4)


def test_a_step_does_not_depend_on_chance() -> None:
    torch.manual_seed(0)
    step = PublishedStep(KPrism(RECIPE.network(num_classes=2)), RECIPE)
    losses = {mode: [float(step(batch(mode))[0].detach()) for _ in range(2)] for mode in MODES}
    assert all(first == second for first, second in losses.values())
