# SPDX-License-Identifier: Apache-2.0
"""Rounds of simulated annotation: what one batch teaches in the three modes, all on the same image features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.batch import Batch
from kprism_model.interaction.simulated_user import RowSelection, SimulatedUser, select_rows, simulated_user
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import Decoded, KPrism
from kprism_model.network.prompts import COARSEST_ONLY, Prompts, click_discs
from kprism_model.network.references import References
from kprism_model.training.losses import kind_loss, mask_loss, presence_loss

MODES = ("semantic", "in_context", "interactive")

_Decode = Callable[[Prompts], Decoded]
"""The decoder on the features of one batch, which are projected once for all that is asked of them."""


@dataclass(frozen=True)
class StepSettings:
    """How a batch is practised.

    `weights` of the losses of semantic, in-context and interactive rows; a mode of weight 0 is left out. A semantic
    or in-context first mask is corrected by a click with the chance `corrected`. Interactive rows start with a
    click or, with the chance `scribbled`, with scribbles; up to `unseen_clicks` further clicks follow without a
    gradient, so that the network meets late corrections at the price of a forward pass; then `rounds` masks are
    learned from. With the chance `carried` they start from a mask carried over from the slice before instead
    (`carrying`), else with the chance `wrong` from a mask that is to be corrected (`corrupted_masks`). Masks after the
    first weigh `later_weight`. Presence, with `presence_weight`, is learned from the rows of first masks and from
    the structures that images are known to lack; the kind of an image, with `kind_weight`, from its data set.
    """

    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    corrected: float = 0.35
    scribbled: float = 0.2
    carried: float = 0.15
    wrong: float = 0.5
    unseen_clicks: int = 3
    rounds: int = 2
    later_weight: float = 0.8
    presence_weight: float = 1.0
    kind_weight: float = 0.1


def training_step(
    model: KPrism,
    batch: Batch,
    rng: np.random.Generator,
    settings: StepSettings,
    features: ImageFeatures | None = None,
    user: SimulatedUser | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Learn a batch in every mode that it holds rows for (paper, training section).

    `features` are those of the batch's images, if they are known already; `user` by default is the one for the batch's
    device, drawing from `rng`. Returns the loss to differentiate and, for logging, the mean Dice of the first and last
    masks: "semantic", "in_context", "interactive" and "interactive_last", on the batch's device.
    """
    # Drawn before anything that depends on the images, so that with equal generators all processes of a training do
    # equally many rounds: each step waits for the slowest.
    courses = {mode: _course(mode, rng, settings) for mode in MODES}
    user = user or simulated_user(rng, batch.images.device)
    features = model.encode_image(batch.images) if features is None else features
    decode = partial(model.decode, features, projected=model.project(features))
    losses: list[Tensor] = []
    scores: dict[str, Tensor] = {}
    answers = torch.zeros_like(batch.masks)
    for mode, weight in zip(MODES, settings.weights, strict=True):
        task = _task(model, batch, features, mode, courses[mode], answers, user) if weight else None
        if task is not None:
            done = _practise_task(decode, task, user, settings)
            losses.append(weight * done.loss)
            scores[mode] = done.first_dice
            if mode == "interactive":
                scores["interactive_last"] = done.last_dice
            answers = _with_answers(answers, task, done.first)
    absence = _absence_loss(decode, batch, user) if settings.weights[0] else None
    if absence is not None:
        losses.append(settings.weights[0] * settings.presence_weight * absence)
    if model.kind_head is not None and settings.kind_weight:
        logits = model.kind_head(model.kind_head.pooled(features))
        losses.append(settings.kind_weight * kind_loss(logits, batch.kinds, model.config.kinds))
    if not losses:  # nothing can be asked of these images: a gradient of zero
        return 0.0 * model.decoder.class_content.sum(), scores
    return torch.stack(losses).sum(), scores


def semantic_prompts(batch: Batch, rows: RowSelection | None = None) -> Prompts | None:
    """The classes of the images that `rows` name, by default of all that have one; None where no image has."""
    rows = rows or select_rows(batch.class_index >= 0)
    if rows is None:
        return None
    return Prompts(_size(batch), rows.numbers, class_index=batch.class_index[rows.numbers].clamp(min=0))


def absent_prompts(batch: Batch, slots: RowSelection | None = None) -> Prompts | None:
    """The classes that the images are known to lack, to be asked for their presence alone; None where none is known.

    `slots` name places in the flattened `batch.absent_classes`, by default all that hold a class.
    """
    slots = slots or select_rows((batch.absent_classes >= 0).flatten())
    if slots is None:
        return None
    classes = batch.absent_classes.flatten()[slots.numbers].clamp(min=0)
    images = slots.numbers // batch.absent_classes.shape[1]
    return Prompts(_size(batch), images, class_index=classes, minimum_presence=COARSEST_ONLY)


def in_context_prompts(
    model: KPrism, batch: Batch, features: ImageFeatures, rows: RowSelection | None = None
) -> Prompts | None:
    """The references in the batch of the images that `rows` name, by default of all that have any; None where none has.

    `features` are those of the batch's images.
    """
    rows = rows or select_rows(batch.references[:, 0] >= 0)
    if rows is None:
        return None
    return Prompts(_size(batch), rows.numbers, references=_references(model, batch, features, rows.numbers))


def _references(model: KPrism, batch: Batch, features: ImageFeatures, rows: Tensor) -> References:
    encoded = model.encode_references(batch.images[:, None], batch.masks[:, None], features)
    return encoded.gather(batch.references[rows].clamp(min=0))


def _size(batch: Batch) -> tuple[int, int]:
    return batch.images.shape[-2], batch.images.shape[-1]


@dataclass(frozen=True)
class _Course:
    """How many rounds a task has, how many of them, the first, pass without a gradient; what comes first."""

    rounds: int
    unseen: int = 0
    scribbled: bool = False
    carried: bool = False
    wrong: bool = False


def _course(mode: str, rng: np.random.Generator, settings: StepSettings) -> _Course:
    if mode != "interactive":
        return _Course(1 + int(rng.random() < settings.corrected))
    unseen, scribbled = int(rng.integers(settings.unseen_clicks + 1)), bool(rng.random() < settings.scribbled)
    if rng.random() < settings.carried:
        return _Course(settings.rounds, carried=True)
    wrong = bool(rng.random() < settings.wrong)
    return _Course(unseen + settings.rounds, unseen, scribbled and not wrong, wrong=wrong)


@dataclass(frozen=True)
class _Task:
    """Rows of one mode: their first prompts, true masks (N, 1, H, W) and weights, and how many rounds."""

    prompts: Prompts
    masks: Tensor
    weight: Tensor | None
    course: _Course
    has_presence: bool


def _task(
    model: KPrism,
    batch: Batch,
    features: ImageFeatures,
    mode: str,
    course: _Course,
    answers: Tensor,
    user: SimulatedUser,
) -> _Task | None:
    """What one mode asks of the batch; None where it holds no row for it.

    `answers` (B, 1, H, W) are the probabilities of the modes before, 0 where there are none.
    """
    rows = user.rows(_applies(batch, mode, course))
    if rows is None:
        return None
    prompts: Prompts | None
    if mode == "semantic":
        prompts, masks = semantic_prompts(batch, rows), batch.masks
    elif mode == "in_context":
        prompts, masks = in_context_prompts(model, batch, features, rows), batch.masks
    elif course.carried:
        references = _references(model, batch, features, rows.numbers)
        prompts, masks = _carried(rows.numbers, batch.masks[rows.numbers], references, user), batch.masks
    else:
        whole = (batch.objects == batch.masks).flatten(1).all(dim=1)  # a mask of all nuclei is no first mask of one
        answers = answers * whole[:, None, None, None]
        prompts, masks = _first_prompts(rows.numbers, batch.objects, answers, course, user), batch.objects
    assert prompts is not None  # there are rows
    return _Task(prompts, masks[rows.numbers], rows.weight, course, mode != "interactive")


def _applies(batch: Batch, mode: str, course: _Course) -> Tensor:
    """Which images (B,) a mode can be asked of."""
    if mode == "semantic":
        return batch.class_index >= 0
    if mode == "in_context":
        return batch.references[:, 0] >= 0
    if course.carried:
        return (batch.references[:, 0] >= 0) & batch.masks.flatten(1).any(dim=1)
    return batch.objects.flatten(1).any(dim=1)


def _absence_loss(decode: _Decode, batch: Batch, user: SimulatedUser) -> Tensor | None:
    """The presence loss of what the images are known to lack; None where nothing is known."""
    slots = user.rows((batch.absent_classes >= 0).flatten())
    prompts = None if slots is None else absent_prompts(batch, slots)
    if slots is None or prompts is None:
        return None
    presence = decode(prompts).presence.float()
    return presence_loss(presence, torch.zeros_like(presence), row_weight=slots.weight)


class _Practised(NamedTuple):
    """The mean loss of the rounds that are learned from, mean Dice after the first and the last round, and the first
    answer: probability (N, 1, H, W).
    """

    loss: Tensor
    first_dice: Tensor
    last_dice: Tensor
    first: Tensor


def _practise_task(decode: _Decode, task: _Task, user: SimulatedUser, settings: StepSettings) -> _Practised:
    present = task.masks.flatten(1).any(dim=1).float()
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    first = torch.empty(0)
    for number, (probability, loss, presence) in enumerate(_rounds(decode, task, user)):
        scores.append(_mean_dice(probability, task.masks, task.weight))
        first = probability if number == 0 else first
        if loss is None:
            continue
        losses.append(loss * (settings.later_weight if losses else 1.0))
        if number == 0 and task.has_presence:
            known = presence_loss(presence, present, row_weight=task.weight)
            losses[0] = losses[0] + settings.presence_weight * known
    return _Practised(torch.stack(losses).mean(), scores[0], scores[-1], first)


def _rounds(decode: _Decode, task: _Task, user: SimulatedUser) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Mask probability (N, 1, H, W), loss and presence logits of each round; no loss for the unseen ones."""
    prompts = task.prompts
    for number in range(task.course.rounds):
        learned = number >= task.course.unseen
        with torch.set_grad_enabled(learned):
            decoded = decode(prompts)
            logits = [layer.float() for layer in decoded.logits]
            loss = mask_loss(logits, task.masks, row_weight=task.weight) if learned else None
        probability = _probability(logits[-1], prompts.size)
        yield probability, loss, decoded.presence.float()
        if number + 1 < task.course.rounds:
            prompts = _with_clicks(prompts, probability, task.masks, user)


def _first_prompts(rows: Tensor, objects: Tensor, answers: Tensor, course: _Course, user: SimulatedUser) -> Prompts:
    """Prompts that hold a scribble or a click a row, or a mask to correct and a click where it is most wrong."""
    objects, size = objects[rows], (objects.shape[-2], objects.shape[-1])
    if course.scribbled:
        drawn, points, labels = user.scribbles(objects)
        previous = torch.zeros_like(objects)
    else:
        previous = user.corrupted_masks(objects, answers[rows]) if course.wrong else torch.zeros_like(objects)
        points, labels = user.clicks(previous, objects)
        drawn = click_discs(points, labels, size)
    return Prompts(size, rows, points=points, point_labels=labels, dense=torch.cat([drawn, previous], dim=1))


def _carried(rows: Tensor, masks: Tensor, references: References, user: SimulatedUser) -> Prompts:
    """Prompts that carry on made-up masks of the slice before: they, points that stand for them, and references."""
    size = (masks.shape[-2], masks.shape[-1])
    previous, points, labels = user.propagated_masks(masks)
    dense = torch.cat([click_discs(points, labels, size), previous], dim=1)
    return Prompts(size, rows, references=references, points=points, point_labels=labels, dense=dense)


def _with_clicks(prompts: Prompts, probability: Tensor, masks: Tensor, user: SimulatedUser) -> Prompts:
    """The same prompts with one more click a row, and `probability` (N, 1, H, W) as the previous mask."""
    points, point_labels = user.clicks(probability, masks)
    drawn = click_discs(points, point_labels, prompts.size)
    if prompts.points is not None and prompts.point_labels is not None:
        points = torch.cat([prompts.points, points], dim=1)
        point_labels = torch.cat([prompts.point_labels, point_labels], dim=1)
    if prompts.dense is not None:
        drawn = torch.maximum(drawn, prompts.dense[:, :2])
    return replace(prompts, points=points, point_labels=point_labels, dense=torch.cat([drawn, probability], dim=1))


def _with_answers(answers: Tensor, task: _Task, found: Tensor) -> Tensor:
    """The answers (B, 1, H, W) with those that a task `found` for its rows."""
    rows = task.prompts.image_index
    if task.weight is not None:
        found = torch.where(task.weight[:, None, None, None] > 0, found, answers[rows])
    return answers.index_copy(0, rows, found.to(answers.dtype))


def _probability(logits: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(logits.detach(), size, mode="bilinear", align_corners=False)
    return resized.sigmoid()


def _mean_dice(probability: Tensor, masks: Tensor, weight: Tensor | None) -> Tensor:
    """Mean Dice of the thresholded probabilities, over the rows that hold the object and weigh; NaN where none does."""
    predicted = (probability > 0.5).flatten(1)
    target = (masks > 0.5).flatten(1)
    held = target.any(1) if weight is None else target.any(1) & (weight > 0)
    overlap = 2 * (predicted & target).sum(1) / (predicted.sum(1) + target.sum(1)).clamp(min=1)
    return torch.where(held, overlap, torch.nan).nanmean()
