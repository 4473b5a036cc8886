# SPDX-License-Identifier: Apache-2.0
"""Rounds of simulated annotation on one batch: a first mask, then clicks on its errors, all on the same features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kprism_model.clicks import next_clicks, simulate_scribble
from kprism_model.losses import mask_loss, presence_loss
from kprism_model.network import KPrism
from kprism_model.prompts import PADDING, Prompts, click_discs
from kprism_model.sampling import Batch

SCRIBBLE_POINTS = 4
"""A scribble is drawn into the dense map and gives this many click tokens, evenly among its rows of pixels."""


@dataclass(frozen=True)
class RoundSettings:
    """How a batch is practised: number of rounds, weight of the later ones, share of batches that start by scribbles.

    Interactive batches get `interactive_rounds`, which follow a first click; the others `rounds`, the first without.
    """

    rounds: int = 2
    interactive_rounds: int = 3
    later_weight: float = 0.8
    scribble_fraction: float = 0.2
    presence_weight: float = 1.0


def practise(
    model: KPrism, batch: Batch, rng: np.random.Generator, settings: RoundSettings
) -> tuple[Tensor, dict[str, float]]:
    """Run the rounds of one batch (paper, training section).

    Semantic and in-context batches start without clicks, interactive ones with a click or a scribble; after each round
    every row gets a click at its largest error. Returns the loss to differentiate and the mean Dice of the masks
    after the first and the last round, for logging.
    """
    features = model.encode_image(batch.images)
    prompts = _first_prompts(model, batch, rng, settings)
    loss = torch.zeros((), device=batch.images.device)
    scores = []
    rounds = settings.interactive_rounds if batch.mode == "interactive" else settings.rounds
    for number in range(rounds):
        decoded = model.decode(features, prompts)
        weight = settings.later_weight if number else 1.0
        loss = loss + weight * mask_loss([layer.float() for layer in decoded.logits], batch.masks)
        if number == 0 and batch.mode != "interactive":
            loss = loss + settings.presence_weight * presence_loss(decoded.presence.float(), batch.present.float())
        probability = _probability(decoded.logits[-1], prompts.size)
        scores.append(_mean_dice(probability, batch.masks))
        if number + 1 < rounds:
            prompts = _with_clicks(prompts, probability, batch.masks, rng)
    return loss / rounds, {"first": scores[0], "last": scores[-1]}


def _first_prompts(model: KPrism, batch: Batch, rng: np.random.Generator, settings: RoundSettings) -> Prompts:
    rows, _, height, width = batch.images.shape
    index = torch.arange(rows, device=batch.images.device)
    size = (height, width)
    if batch.mode == "semantic":
        return Prompts(size, index, class_index=batch.class_index)
    if batch.mode == "in_context":
        if batch.reference_images is None or batch.reference_masks is None:
            raise ValueError("an in-context batch needs reference_images and reference_masks")
        return Prompts(size, index, references=model.encode_references(batch.reference_images, batch.reference_masks))
    if rng.random() < settings.scribble_fraction:
        return _scribbles(size, index, batch.masks, rng)
    blank = torch.zeros(rows, 1, height, width, device=batch.images.device)
    points, point_labels = _clicks(blank, batch.masks, rng)
    dense = torch.cat([click_discs(points, point_labels, size), blank], dim=1)
    return Prompts(size, index, points=points, point_labels=point_labels, dense=dense)


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


def _scribbles(size: tuple[int, int], index: Tensor, masks: Tensor, rng: np.random.Generator) -> Prompts:
    """Prompts that hold one positive scribble a row, inside the object; nothing where the object is lost."""
    drawn = torch.zeros(len(masks), 3, *size)
    points = torch.zeros(len(masks), SCRIBBLE_POINTS, 2)
    labels = torch.full((len(masks), SCRIBBLE_POINTS), PADDING)
    for row, mask in enumerate((masks[:, 0] > 0.5).cpu().numpy()):
        if mask.any():
            scribble = simulate_scribble(mask, rng)
            drawn[row, 0] = torch.from_numpy(scribble)
            pixels = np.argwhere(scribble)
            chosen = pixels[np.linspace(0, len(pixels) - 1, SCRIBBLE_POINTS).round().astype(int)]
            points[row] = torch.from_numpy(chosen)
            labels[row] = 1
    device = masks.device
    return Prompts(size, index, points=points.to(device), point_labels=labels.to(device), dense=drawn.to(device))


def _probability(logits: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(logits.detach().float(), size, mode="bilinear", align_corners=False)
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
