# SPDX-License-Identifier: Apache-2.0
"""One training step: the loss of a batch in the three modes, with simulated interaction, on the same image features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kprism_model.data.batch import Batch
from kprism_model.interaction.simulated_user import SimulatedUser, simulated_user
from kprism_model.losses import kind_loss, mask_loss, presence_loss
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import Decoded, KPrism
from kprism_model.network.prompts import Prompts
from kprism_model.training.mask_scores import mask_probability, mean_dice
from kprism_model.training.prompts import (
    absent_prompts,
    encode_references,
    in_context_prompts,
    interactive_prompts,
    propagation_prompts,
    semantic_prompts,
    with_next_click,
)
from kprism_model.training.schedule import MODES, Schedule, StepSettings, draw_schedule

_Decode = Callable[[Prompts], Decoded]
"""The decoder on the features of one batch, which are projected once for all prompts."""


def training_step(
    model: KPrism,
    batch: Batch,
    rng: np.random.Generator,
    settings: StepSettings,
    features: ImageFeatures | None = None,
    user: SimulatedUser | None = None,
    predictions: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch in every mode for which it holds rows (paper, training section).

    `features` are those of the batch's images, if they are known already; `user` by default is the one for the batch's
    device, drawing from `rng`. `predictions` (B, 1, H, W) are probabilities that the network has given already: masks
    to correct are made from them, and from those of the modes before. Returns the loss to differentiate and, for
    logging, the mean Dice of the first and last masks: "semantic", "in_context", "interactive" and "interactive_last",
    on the batch's device.
    """
    # Drawn before anything that depends on the images, so that with equal generators all processes of a training
    # simulate equally many interaction steps: each training step waits for the slowest process.
    schedules = {mode: draw_schedule(mode, rng, settings) for mode in MODES}
    user = user or simulated_user(rng, batch.images.device)
    features = model.encode_image(batch.images) if features is None else features
    decode = partial(model.decode, features, projected=model.project(features))
    losses: list[Tensor] = []
    scores: dict[str, Tensor] = {}
    predictions = torch.zeros_like(batch.masks) if predictions is None else predictions
    for mode, weight in zip(MODES, settings.weights, strict=True):
        task = _mode_task(model, batch, features, mode, schedules[mode], predictions, user) if weight else None
        if task is not None:
            outcome = _run_task(decode, task, user, settings)
            losses.append(weight * outcome.loss)
            scores[mode] = outcome.first_dice
            if mode == "interactive":
                scores["interactive_last"] = outcome.last_dice
            predictions = _with_predictions(predictions, task, outcome.first_probability)
    absence = _absence_loss(decode, batch, user) if settings.weights[0] else None
    if absence is not None:
        losses.append(settings.weights[0] * settings.presence_weight * absence)
    if model.kind_head is not None and settings.kind_weight:
        logits = model.kind_head(model.kind_head.pooled(features))
        losses.append(settings.kind_weight * kind_loss(logits, batch.kinds, model.config.kinds))
    if not losses:  # these images have nothing to learn from: a gradient of zero
        return 0.0 * model.decoder.class_content.sum(), scores
    return torch.stack(losses).sum(), scores


@dataclass(frozen=True)
class _Task:
    """The rows of one mode: first prompts, true masks (N, 1, H, W), weights (N,) and interaction schedule."""

    prompts: Prompts
    masks: Tensor
    weight: Tensor | None
    schedule: Schedule
    has_presence: bool


def _mode_task(
    model: KPrism,
    batch: Batch,
    features: ImageFeatures,
    mode: str,
    schedule: Schedule,
    predictions: Tensor,
    user: SimulatedUser,
) -> _Task | None:
    """What one mode learns from the batch; None if no row of it suits the mode.

    `predictions` (B, 1, H, W) are the probabilities of the modes before, 0 where there are none.
    """
    rows = user.rows(_suitable_images(batch, mode, schedule))
    if rows is None:
        return None
    prompts: Prompts | None
    if mode == "semantic":
        prompts, masks = semantic_prompts(batch, rows), batch.masks
    elif mode == "in_context":
        prompts, masks = in_context_prompts(model, batch, features, rows), batch.masks
    elif schedule.propagated:
        references = encode_references(model, batch, features, rows.numbers)
        prompts, masks = propagation_prompts(rows.numbers, batch.masks[rows.numbers], references, user), batch.masks
    else:
        single = (batch.objects == batch.masks).flatten(1).all(dim=1)  # a mask of all nuclei is no mask of one nucleus
        predictions = predictions * single[:, None, None, None]
        prompts, masks = interactive_prompts(rows.numbers, batch.objects, predictions, schedule, user), batch.objects
    assert prompts is not None  # there are rows
    return _Task(prompts, masks[rows.numbers], rows.weight, schedule, mode != "interactive")


def _suitable_images(batch: Batch, mode: str, schedule: Schedule) -> Tensor:
    """Which images (B,) have what a mode needs."""
    if mode == "semantic":
        return batch.class_index >= 0
    if mode == "in_context":
        return batch.references[:, 0] >= 0
    if schedule.propagated:
        return (batch.references[:, 0] >= 0) & batch.masks.flatten(1).any(dim=1)
    return batch.objects.flatten(1).any(dim=1)


def _absence_loss(decode: _Decode, batch: Batch, user: SimulatedUser) -> Tensor | None:
    """The presence loss of classes that the images are known to lack; None if no such class is known."""
    slots = user.rows((batch.absent_classes >= 0).flatten())
    prompts = None if slots is None else absent_prompts(batch, slots)
    if slots is None or prompts is None:
        return None
    presence = decode(prompts).presence.float()
    return presence_loss(presence, torch.zeros_like(presence), row_weight=slots.weight)


class _Outcome(NamedTuple):
    """The mean loss of a task, mean Dice of the first and the last mask, probability (N, 1, H, W) of the first."""

    loss: Tensor
    first_dice: Tensor
    last_dice: Tensor
    first_probability: Tensor


def _run_task(decode: _Decode, task: _Task, user: SimulatedUser, settings: StepSettings) -> _Outcome:
    present = task.masks.flatten(1).any(dim=1).float()
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    first = torch.empty(0)
    for number, (probability, loss, presence) in enumerate(_interaction_steps(decode, task, user)):
        scores.append(mean_dice(probability, task.masks, task.weight))
        first = probability if number == 0 else first
        if loss is None:
            continue
        losses.append(loss * (settings.later_weight if losses else 1.0))
        if number == 0 and task.has_presence:
            presence_part = presence_loss(presence, present, row_weight=task.weight)
            losses[0] = losses[0] + settings.presence_weight * presence_part
    return _Outcome(torch.stack(losses).mean(), scores[0], scores[-1], first)


def _interaction_steps(
    decode: _Decode, task: _Task, user: SimulatedUser
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Mask probability (N, 1, H, W), loss (None in steps without gradient) and presence logits (N,) of each step."""
    prompts = task.prompts
    for number in range(task.schedule.steps):
        has_loss = number >= task.schedule.without_gradient
        with torch.set_grad_enabled(has_loss):
            decoded = decode(prompts)
            logits = [layer.float() for layer in decoded.logits]
            loss = mask_loss(logits, task.masks, row_weight=task.weight) if has_loss else None
        probability = mask_probability(logits[-1], prompts.size)
        yield probability, loss, decoded.presence.float()
        if number + 1 < task.schedule.steps:
            prompts = with_next_click(prompts, probability, task.masks, user)


def _with_predictions(predictions: Tensor, task: _Task, probability: Tensor) -> Tensor:
    """`predictions` (B, 1, H, W) with the `probability` (N, 1, H, W) that a task has given for its rows."""
    rows = task.prompts.image_index
    if task.weight is not None:
        probability = torch.where(task.weight[:, None, None, None] > 0, probability, predictions[rows])
    return predictions.index_copy(0, rows, probability.to(predictions.dtype))
