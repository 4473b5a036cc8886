# SPDX-License-Identifier: Apache-2.0
"""What each baseline plays: its network, its batches, its loss, and its answers in image pixels.

- semantic: a U-Net for each data set, all its classes at once;
- interactive: one U-Net with maps of clicks and the previous mask beside the image, for any object (DeepGrow, arXiv
  1903.08205; DeepEdit, arXiv 2305.10655);
- in-context: UniverSeg, for any structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from kprism_model.classes import ClassRegistry
from kprism_model.data.augment import augment_batch
from kprism_model.data.batch import Batch
from kprism_model.data.slices import SliceSet
from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.evaluation.reference_pool import Picture
from kprism_model.interaction.clicks import next_clicks
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.prompts import click_discs
from kprism_model.predictor import THRESHOLD, Prediction
from kprism_model.preprocess import Geometry
from kprism_model.queries import ImageEmbedding, Query, batches, build_prompts

CHANNELS = (32, 64, 128, 256, 384)
DISC_RADIUS = 5
"""Clicks are discs of this radius in pixels, as in RITM (arXiv 2102.06583)."""

ROUNDS = 3
"""A click U-Net learns from this many masks of a batch, at most, each after one more click."""

_SHOWN = 0.5  # this share of a specialist's slices is drawn among those that show a class
_NO_CLASSES = ClassRegistry(["object"])


def unet(in_channels: int, out_channels: int) -> nn.Module:
    """MONAI's residual U-Net at about the size of the small K-Prism network (5 M parameters)."""
    network: nn.Module = UNet(2, in_channels, out_channels, CHANNELS, (2, 2, 2, 2), num_res_units=2, norm="batch")
    return network


class LabelBatch(NamedTuple):
    """Images (n, 3, S, S) in [0, 1] and one-hot labels (n, 1 + classes, S, S), background first."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SpecialistBatches:
    """Augmented slices of one data set: half of them show a class drawn uniformly, the others are any slices."""

    part: SliceSet
    batch_size: int
    size: int
    seed: int

    def __call__(self, step: int) -> LabelBatch:
        """The batch of a step."""
        rng = np.random.default_rng([self.seed, step])
        rows = [self._draw(rng) for _ in range(self.batch_size)]
        values = np.array(list(self.part.classes)).reshape(1, -1, 1, 1)
        masks = torch.from_numpy(self.part.labels[rows][:, None] == values)
        images = torch.from_numpy(self.part.images[rows].transpose(0, 3, 1, 2).copy())
        images = images.expand(-1, 3, -1, -1).contiguous()
        content = torch.from_numpy(self.part.content[rows])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        changed, changed_masks = augment_batch(images, masks, generator, size=self.size, content=content)
        background = 1 - changed_masks.amax(1, keepdim=True)
        return LabelBatch(changed, torch.cat([background, changed_masks], dim=1))

    def _draw(self, rng: np.random.Generator) -> int:
        shown = np.flatnonzero(self.part.pixels[:, rng.integers(len(self.part.classes))] >= MINIMUM_PIXELS)
        if rng.random() < _SHOWN and len(shown):
            return int(rng.choice(shown))
        return int(rng.integers(len(self.part)))


def specialist_loss(network: nn.Module, batch: LabelBatch, rng: np.random.Generator) -> Tensor:
    """Dice and cross-entropy over all classes."""
    loss: Tensor = DiceCELoss(softmax=True, include_background=False)(network(batch.images), batch.labels)
    return loss


def click_loss(network: nn.Module, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Clicks on the largest error of each mask, from none on; the mean loss of up to `ROUNDS` masks."""
    rows = batch.objects.flatten(1).any(1)
    images, true = batch.images[rows], batch.objects[rows]
    if not len(images):
        return sum(parameter.sum() for parameter in network.parameters()) * torch.zeros(())
    size = (images.shape[2], images.shape[3])
    discs, previous = torch.zeros(len(images), 2, *size), torch.zeros_like(true)
    losses = []
    for _ in range(1 + int(rng.integers(ROUNDS))):
        points, labels = next_clicks(previous[:, 0].numpy() >= THRESHOLD, true[:, 0].numpy() > 0, rng=rng)
        drawn = click_discs(torch.from_numpy(points)[:, None], torch.from_numpy(labels)[:, None], size, DISC_RADIUS)
        discs = torch.maximum(discs, drawn)
        logits = network(torch.cat([images, discs, previous], dim=1))
        losses.append(_binary_loss(logits, true))
        previous = logits.detach().sigmoid()
    return torch.stack(losses).mean()


def in_context_loss(network: nn.Module, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Each image by the examples of its group."""
    rows = batch.references[:, 0] >= 0
    index = batch.references[rows]
    if not len(index):
        return sum(parameter.sum() for parameter in network.parameters()) * torch.zeros(())
    return _binary_loss(network(batch.images[rows], batch.images[index], batch.masks[index]), batch.masks[rows])


def _binary_loss(logits: Tensor, true: Tensor) -> Tensor:
    loss: Tensor = DiceCELoss(sigmoid=True)(logits, true)
    return loss


def lay_out(image: NDArray[np.float32], size: int) -> ImageEmbedding:
    """An image on its canvas: a U-Net keeps nothing of it but the pixels, which stand for its features."""
    geometry = Geometry.fit((image.shape[0], image.shape[1]), size)
    canvas = geometry.image_to_model(image)[None]
    return ImageEmbedding(ImageFeatures(canvas, canvas, canvas), geometry)


@torch.inference_mode()
def answer_classes(network: nn.Module, embeddings: Sequence[ImageEmbedding], classes: int) -> list[list[Prediction]]:
    """Of each image a mask for each class: where it is the most probable of all, background included."""
    answers = []
    for embedding in embeddings:
        logits = embedding.geometry.logits_to_image(network(embedding.features.stride4)[0])
        best, probability = logits.argmax(0), logits.softmax(0)
        answers.append([_prediction(best == n, probability[n]) for n in range(1, classes + 1)])
    return answers


@torch.inference_mode()
def answer_clicks(network: nn.Module, queries: Sequence[Query]) -> list[Prediction]:
    """The masks of clicked objects."""
    answers: dict[int, Prediction] = {}
    for rows in batches(queries, len(queries)):
        chosen = [queries[row] for row in rows]
        features, prompts = build_prompts(chosen, _NO_CLASSES, torch.device("cpu"))
        assert prompts.points is not None and prompts.point_labels is not None and prompts.dense is not None
        discs = click_discs(prompts.points, prompts.point_labels, prompts.size, DISC_RADIUS)
        images = features.stride4.index_select(0, prompts.image_index)
        logits = network(torch.cat([images, discs, prompts.dense[:, 2:]], dim=1))
        for row, query, one in zip(rows, chosen, logits, strict=True):
            probability = query.embedding.geometry.logits_to_image(one)[0].sigmoid()
            answers[row] = _prediction(probability >= THRESHOLD, probability)
    return [answers[row] for row in range(len(queries))]


def lay_out_examples(pictures: Sequence[Picture], size: int) -> tuple[Tensor, Tensor]:
    """Examples on square canvases: images (S, 3, size, size) and masks (S, 1, size, size) of 0 and 1."""
    canvas = torch.zeros(2, len(pictures), 3, size, size)
    for number, (image, mask) in enumerate(pictures):
        geometry = Geometry.fit((mask.shape[0], mask.shape[1]), size)
        rows, columns = geometry.padded
        canvas[0, number, :, :rows, :columns] = geometry.image_to_model(image)
        share = geometry.mask_to_model(mask)
        canvas[1, number, :, :rows, :columns] = share >= min(THRESHOLD, float(share.max()))
    return canvas[0], canvas[1, :, :1]


@torch.inference_mode()
def answer_in_context(
    network: nn.Module, images: Sequence[NDArray[np.float32]], examples: tuple[Tensor, Tensor]
) -> list[Prediction]:
    """The masks of one structure in images of any size, by the examples that `lay_out_examples` gave."""
    support, masks = (part[None] for part in examples)
    size = support.shape[-1]
    answers = []
    for image in images:
        geometry = Geometry.fit((image.shape[0], image.shape[1]), size)
        canvas = torch.zeros(1, 3, size, size)
        canvas[0, :, : geometry.padded[0], : geometry.padded[1]] = geometry.image_to_model(image)
        logits = network(canvas, support, masks)[0, :, : geometry.padded[0], : geometry.padded[1]]
        probability = geometry.logits_to_image(logits)[0].sigmoid()
        answers.append(_prediction(probability >= THRESHOLD, probability))
    return answers


def _prediction(mask: Tensor, probability: Tensor) -> Prediction:
    """No baseline says whether a structure is there but by its mask, so presence is 1."""
    return Prediction(mask.numpy(), probability.numpy(), 1.0)
