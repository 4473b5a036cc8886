# SPDX-License-Identifier: Apache-2.0
"""Rounds of simulated annotation: what one batch teaches in the three modes, all on the same image features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from kprism_model.annotator.clicks import next_clicks, simulate_scribble
from kprism_model.annotator.scribbles import SCRIBBLE_POINTS, scribble_points
from kprism_model.data.batch import Batch
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import COARSEST_ONLY, PADDING, Prompts, click_discs
from kprism_model.network.references import References
from kprism_model.training.carrying import carried_prompts
from kprism_model.training.losses import kind_loss, mask_loss, presence_loss
from kprism_model.training.wrong_masks import wrong_masks

MODES = ("semantic", "in_context", "interactive")

_NEGATIVE_REACH = 8  # a negative scribble is drawn within this many pixels outside of the object


@dataclass(frozen=True)
class RoundSettings:
    """How a batch is practised.

    `weights` of the losses of semantic, in-context and interactive rows; a mode of weight 0 is left out. A semantic
    or in-context first mask is corrected by a click with the chance `corrected`. Interactive rows start with a
    click or, with the chance `scribbled`, with scribbles; up to `unseen_clicks` further clicks follow without a
    gradient, so that the network meets late corrections at the price of a forward pass; then `rounds` masks are
    learned from. With the chance `carried` they start from a mask carried over from the slice before instead
    (`carrying`), else with the chance `wrong` from a mask that is to be corrected (`wrong_masks`). Masks after the
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


def practise(
    model: KPrism,
    batch: Batch,
    rng: np.random.Generator,
    settings: RoundSettings,
    features: ImageFeatures | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Learn a batch in every mode that it holds rows for (paper, training section).

    `features` are those of the batch's images, if they are known already. Returns the loss to differentiate and, for
    logging, the mean Dice of the first and last masks: "semantic", "in_context", "interactive" and "interactive_last".
    """
    # Drawn before anything that depends on the images, so that with equal generators all processes of a training do
    # equally many rounds: each step waits for the slowest.
    courses = {mode: _course(mode, rng, settings) for mode in MODES}
    features = model.encode_image(batch.images) if features is None else features
    losses: list[Tensor] = []
    scores: dict[str, float] = {}
    answers = torch.zeros_like(batch.masks)
    for mode, weight in zip(MODES, settings.weights, strict=True):
        task = _task(model, batch, features, mode, courses[mode], answers, rng) if weight else None
        if task is not None:
            done = _practise_task(model, features, task, rng, settings)
            losses.append(weight * done.loss)
            scores[mode] = done.first_dice
            if mode == "interactive":
                scores["interactive_last"] = done.last_dice
            answers[task.prompts.image_index] = done.first
    absent = absent_prompts(batch) if settings.weights[0] else None
    if absent is not None:
        presence = model.decode(features, absent).presence.float()
        loss = presence_loss(presence, torch.zeros_like(presence))
        losses.append(settings.weights[0] * settings.presence_weight * loss)
    if model.kind_head is not None and settings.kind_weight:
        logits = model.kind_head(model.kind_head.pooled(features))
        losses.append(settings.kind_weight * kind_loss(logits, batch.kinds, model.config.kinds))
    if not losses:  # nothing can be asked of these images: a gradient of zero
        return 0.0 * model.decoder.class_content.sum(), scores
    return torch.stack(losses).sum(), scores


def semantic_prompts(batch: Batch) -> Prompts | None:
    """Each image's class; None where no image has one."""
    rows = (batch.class_index >= 0).nonzero().flatten()
    return Prompts(_size(batch), rows, class_index=batch.class_index[rows]) if len(rows) else None


def absent_prompts(batch: Batch) -> Prompts | None:
    """The classes that the images are known to lack, to be asked for their presence alone; None where none is known."""
    rows, slots = (batch.lacking >= 0).nonzero(as_tuple=True)
    if not len(rows):
        return None
    return Prompts(_size(batch), rows, class_index=batch.lacking[rows, slots], minimum_presence=COARSEST_ONLY)


def in_context_prompts(model: KPrism, batch: Batch, features: ImageFeatures) -> Prompts | None:
    """Each image's references in the batch, whose `features` are those of its images; None where no image has any."""
    rows = (batch.references[:, 0] >= 0).nonzero().flatten()
    return Prompts(_size(batch), rows, references=_references(model, batch, features, rows)) if len(rows) else None


def _references(model: KPrism, batch: Batch, features: ImageFeatures, rows: Tensor) -> References:
    encoded = model.encode_references(batch.images[:, None], batch.masks[:, None], features)
    return encoded.gather(batch.references[rows])


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


def _course(mode: str, rng: np.random.Generator, settings: RoundSettings) -> _Course:
    if mode != "interactive":
        return _Course(1 + int(rng.random() < settings.corrected))
    unseen, scribbled = int(rng.integers(settings.unseen_clicks + 1)), bool(rng.random() < settings.scribbled)
    if rng.random() < settings.carried:
        return _Course(settings.rounds, carried=True)
    wrong = bool(rng.random() < settings.wrong)
    return _Course(unseen + settings.rounds, unseen, scribbled and not wrong, wrong=wrong)


@dataclass(frozen=True)
class _Task:
    """Rows of one mode: their first prompts and true masks (N, 1, H, W), and how many rounds."""

    prompts: Prompts
    masks: Tensor
    course: _Course
    has_presence: bool


def _task(
    model: KPrism,
    batch: Batch,
    features: ImageFeatures,
    mode: str,
    course: _Course,
    answers: Tensor,
    rng: np.random.Generator,
) -> _Task | None:
    """What one mode asks of the batch; None where it holds no row for it.

    `answers` (B, 1, H, W) are the probabilities of the modes before, 0 where there are none.
    """
    if mode != "interactive":
        prompts = semantic_prompts(batch) if mode == "semantic" else in_context_prompts(model, batch, features)
        return None if prompts is None else _Task(prompts, batch.masks[prompts.image_index], course, True)
    size = _size(batch)
    if course.carried:
        rows = ((batch.references[:, 0] >= 0) & batch.masks.flatten(1).any(dim=1)).nonzero().flatten()
        if not len(rows):
            return None
        masks = batch.masks[rows]
        references = _references(model, batch, features, rows)
        return _Task(carried_prompts(size, rows, masks, references, rng), masks, course, False)
    rows = batch.objects.flatten(1).any(dim=1).nonzero().flatten()
    if not len(rows):
        return None
    objects = batch.objects[rows]
    if course.wrong:
        wrong = wrong_masks(objects, answers[rows], rng)
        return _Task(_first_clicks(size, rows, objects, rng, wrong), objects, course, False)
    first = _scribbles if course.scribbled else _first_clicks
    return _Task(first(size, rows, objects, rng), objects, course, False)


class _Practised(NamedTuple):
    """The mean loss of the rounds that are learned from, mean Dice after the first and the last round, and the first
    answer: probability (N, 1, H, W).
    """

    loss: Tensor
    first_dice: float
    last_dice: float
    first: Tensor


def _practise_task(
    model: KPrism, features: ImageFeatures, task: _Task, rng: np.random.Generator, settings: RoundSettings
) -> _Practised:
    present = task.masks.flatten(1).any(dim=1).float()
    losses: list[Tensor] = []
    scores: list[float] = []
    first = torch.empty(0)
    for number, (probability, loss, presence) in enumerate(_rounds(model, features, task, rng)):
        scores.append(_mean_dice(probability, task.masks))
        first = probability if number == 0 else first
        if loss is None:
            continue
        losses.append(loss * (settings.later_weight if losses else 1.0))
        if number == 0 and task.has_presence:
            losses[0] = losses[0] + settings.presence_weight * presence_loss(presence, present)
    return _Practised(torch.stack(losses).mean(), scores[0], scores[-1], first)


def _rounds(
    model: KPrism, features: ImageFeatures, task: _Task, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Mask probability (N, 1, H, W), loss and presence logits of each round; no loss for the unseen ones."""
    prompts = task.prompts
    for number in range(task.course.rounds):
        with torch.set_grad_enabled(number >= task.course.unseen):
            decoded = model.decode(features, prompts)
            logits = [layer.float() for layer in decoded.logits]
            loss = mask_loss(logits, task.masks) if number >= task.course.unseen else None
        probability = _probability(logits[-1], prompts.size)
        yield probability, loss, decoded.presence.float()
        if number + 1 < task.course.rounds:
            prompts = _with_clicks(prompts, probability, task.masks, rng)


def _first_clicks(
    size: tuple[int, int], rows: Tensor, objects: Tensor, rng: np.random.Generator, before: Tensor | None = None
) -> Prompts:
    """Prompts that hold one click a row: inside the object, or where the mask `before` (N, 1, H, W) is most wrong."""
    before = torch.zeros_like(objects) if before is None else before
    points, point_labels = _clicks(before, objects, rng)
    dense = torch.cat([click_discs(points, point_labels, size), before], dim=1)
    return Prompts(size, rows, points=points, point_labels=point_labels, dense=dense)


def _clicks(probability: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One click a row at the largest error: points (N, 1, 2) and labels (N, 1), padding where there is none."""
    predicted, target = ((x[:, 0] > 0.5).cpu().numpy() for x in (probability, masks))
    points, labels = next_clicks(predicted, target, rng=rng)
    return torch.from_numpy(points)[:, None].to(masks.device), torch.from_numpy(labels)[:, None].to(masks.device)


def _with_clicks(prompts: Prompts, probability: Tensor, masks: Tensor, rng: np.random.Generator) -> Prompts:
    """The same prompts with one more click a row, and `probability` (N, 1, H, W) as the previous mask."""
    points, point_labels = _clicks(probability, masks, rng)
    drawn = click_discs(points, point_labels, prompts.size)
    if prompts.points is not None and prompts.point_labels is not None:
        points = torch.cat([prompts.points, points], dim=1)
        point_labels = torch.cat([prompts.point_labels, point_labels], dim=1)
    if prompts.dense is not None:
        drawn = torch.maximum(drawn, prompts.dense[:, :2])
    return replace(prompts, points=points, point_labels=point_labels, dense=torch.cat([drawn, probability], dim=1))


def _scribbles(size: tuple[int, int], rows: Tensor, objects: Tensor, rng: np.random.Generator) -> Prompts:
    """Prompts that hold a positive scribble a row and, in half of the rows, a negative one close to the object."""
    drawn = torch.zeros(len(objects), 3, *size)
    points = torch.zeros(len(objects), 2 * SCRIBBLE_POINTS, 2)
    labels = torch.full((len(objects), 2 * SCRIBBLE_POINTS), PADDING)
    for row, mask in enumerate((objects[:, 0] > 0.5).cpu().numpy()):
        scribble = _scribble(mask, rng)
        drawn[row, 0] = torch.from_numpy(scribble == 1)
        drawn[row, 1] = torch.from_numpy(scribble == -1)
        chosen, signs = scribble_points(scribble)
        points[row, : len(chosen)] = torch.from_numpy(chosen)
        labels[row, : len(chosen)] = torch.from_numpy(signs)
    device = objects.device
    return Prompts(size, rows, points=points.to(device), point_labels=labels.to(device), dense=drawn.to(device))


def _scribble(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int8]:
    scribble = simulate_scribble(mask, rng).astype(np.int8)
    if rng.random() < 0.5:
        around = ndimage.binary_dilation(mask, iterations=_NEGATIVE_REACH) & ~ndimage.binary_dilation(mask)
        if around.any():
            scribble[simulate_scribble(around, rng)] = -1
    return scribble


def _probability(logits: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(logits.detach(), size, mode="bilinear", align_corners=False)
    return resized.sigmoid()


def _mean_dice(probability: Tensor, masks: Tensor) -> float:
    """Mean Dice of the thresholded probabilities, over the rows that hold the object."""
    predicted = (probability > 0.5).flatten(1)
    target = (masks > 0.5).flatten(1)
    held = target.any(1)
    if not held.any():
        return float("nan")
    overlap = 2 * (predicted & target).sum(1) / (predicted.sum(1) + target.sum(1)).clamp(min=1)
    return float(overlap[held].mean())
