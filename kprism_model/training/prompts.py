# SPDX-License-Identifier: Apache-2.0
"""The prompts of a training step: classes, references, simulated clicks and scribbles, masks to correct."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.batch import Batch
from kprism_model.interaction.simulated_user import Clicks, RowSelection, SimulatedUser, select_rows
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import COARSEST_ONLY, Prompts, click_discs
from kprism_model.network.references import References
from kprism_model.training.schedule import Schedule


def semantic_prompts(batch: Batch, rows: RowSelection | None = None) -> Prompts | None:
    """Prompts for the class of each image in `rows`, by default of all images that have one; None if there is none."""
    rows = rows or select_rows(batch.class_index >= 0)
    if rows is None:
        return None
    return Prompts(_image_size(batch), rows.numbers, class_index=batch.class_index[rows.numbers].clamp(min=0))


def absent_prompts(batch: Batch, slots: RowSelection | None = None) -> Prompts | None:
    """Prompts for the presence of classes that the images are known to lack; None if no such class is known.

    `slots` are indices into the flattened `batch.absent_classes`, by default all that hold a class.
    """
    slots = slots or select_rows((batch.absent_classes >= 0).flatten())
    if slots is None:
        return None
    classes = batch.absent_classes.flatten()[slots.numbers].clamp(min=0)
    images = slots.numbers // batch.absent_classes.shape[1]
    return Prompts(_image_size(batch), images, class_index=classes, minimum_presence=COARSEST_ONLY)


def in_context_prompts(
    model: KPrism, batch: Batch, features: ImageFeatures, rows: RowSelection | None = None
) -> Prompts | None:
    """Prompts with the references that each image in `rows` has in the batch, by default all images that have any.

    `features` are those of the batch's images. None if no image has a reference.
    """
    rows = rows or select_rows(batch.references[:, 0] >= 0)
    if rows is None:
        return None
    return Prompts(_image_size(batch), rows.numbers, references=encode_references(model, batch, features, rows.numbers))


def encode_references(model: KPrism, batch: Batch, features: ImageFeatures, rows: Tensor) -> References:
    """The encoded references of the images `rows` (N,): other images of the batch with their masks."""
    encoded = model.encode_references(batch.images[:, None], batch.masks[:, None], features)
    return encoded.gather(batch.references[rows].clamp(min=0))


def interactive_prompts(
    rows: Tensor, objects: Tensor, predictions: Tensor, schedule: Schedule, user: SimulatedUser
) -> Prompts:
    """The first prompts of a click task: a scribble, a click, or a mask to correct with a click on its largest error.

    `rows` (N,) are images; `objects` (B, 1, H, W) the true masks of all images and `predictions` (B, 1, H, W) what the
    network has answered in other modes, from which masks to correct are made.
    """
    objects, size = objects[rows], (objects.shape[-2], objects.shape[-1])
    if schedule.scribble:
        drawn, points, labels = user.scribbles(objects)
        previous = torch.zeros_like(objects)
    else:
        previous = user.corrupted_masks(objects, predictions[rows]) if schedule.corrupted else torch.zeros_like(objects)
        points, labels = user.clicks(previous, objects)
        drawn = click_discs(points, labels, size)
    return Prompts(size, rows, points=points, point_labels=labels, dense=torch.cat([drawn, previous], dim=1))


def propagation_prompts(rows: Tensor, masks: Tensor, references: References, user: SimulatedUser) -> Prompts:
    """Prompts to propagate simulated masks of the slice before: the masks and references.

    `masks` (N, 1, H, W) are the true masks of the images `rows` (N,).
    """
    size = (masks.shape[-2], masks.shape[-1])
    return Prompts(size, rows, references=references, dense=without_clicks(user.propagated_masks(masks)))


def without_clicks(previous: Tensor) -> Tensor:
    """The dense prompt map (N, 3, H, W) of a previous mask (N, 1, H, W) alone."""
    return F.pad(previous, (0, 0, 0, 0, 2, 0))


def with_next_click(prompts: Prompts, probability: Tensor, masks: Tensor, user: Clicks) -> Prompts:
    """The same prompts with one more click for each row, on the largest error of `probability` (N, 1, H, W).

    `probability` becomes the previous mask; `masks` (N, 1, H, W) are true.
    """
    points, point_labels = user.clicks(probability, masks)
    drawn = click_discs(points, point_labels, prompts.size)
    if prompts.points is not None and prompts.point_labels is not None:
        points = torch.cat([prompts.points, points], dim=1)
        point_labels = torch.cat([prompts.point_labels, point_labels], dim=1)
    if prompts.dense is not None:
        drawn = torch.maximum(drawn, prompts.dense[:, :2])
    return replace(prompts, points=points, point_labels=point_labels, dense=torch.cat([drawn, probability], dim=1))


def _image_size(batch: Batch) -> tuple[int, int]:
    return batch.images.shape[-2], batch.images.shape[-1]
