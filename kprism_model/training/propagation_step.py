# SPDX-License-Identifier: Apache-2.0
"""The loss of propagation through sequences of slices, made step by step from the network's own masks.

This is what `kprism_model.volumes.propagation` does. Each slice is predicted from references, which are the prompted
slice (long memory) and the last slices with the masks that the network gave them (short memory), and from the mask of
the slice before as previous mask. Training on true masks alone would not teach it to recover from its own errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kprism_model.data.batch import SequenceBatch
from kprism_model.interaction.simulated_user import SimulatedUser, simulated_user
from kprism_model.losses import mask_loss, presence_loss
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import Decoded, KPrism
from kprism_model.network.prompts import Prompts, click_discs
from kprism_model.network.references import References
from kprism_model.queries import join_references
from kprism_model.training.mask_scores import mask_probability, mean_dice, row_dice
from kprism_model.training.prompts import with_next_click, without_clicks

MAXIMUM_RECENT = 2
"""So many of the last slices are references at most; how many is drawn, so that the network can do with fewer."""

_BETWEEN = 0.2  # chance that a batch is about slices between two prompted ones
_CLICKED = 0.5  # chance that the first mask is the network's answer to clicks, not the true one
_USABLE_DICE = 0.6  # of such an answer; a user would correct a worse one


def propagation_step(
    model: KPrism,
    batch: SequenceBatch,
    rng: np.random.Generator,
    presence_weight: float = 1.0,
    features: ImageFeatures | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of sequences, and scores for logging.

    `features` are those of the slices (n * T), if they are known already. "propagated" is the mean Dice of the masks
    after the first; "beyond" is the share of slices without the structure in which it is claimed to be present.
    """
    length = batch.images.shape[1]
    user = simulated_user(rng, batch.images.device)
    sequences = EncodedSequences(model, batch, features)
    if rng.random() < _BETWEEN and length > 2:
        outputs = [sequences.between(user)]
        truths = [batch.masks[:, 1:-1].flatten(0, 1)]
    else:
        first = sequences.clicked(user) if rng.random() < _CLICKED else batch.masks[:, 0]
        outputs = sequences.outwards(first, int(rng.integers(MAXIMUM_RECENT + 1)))
        truths = [batch.masks[:, number] for number in range(1, length)]
    losses = []
    presence, present = torch.cat([output.presence.float() for output in outputs]), shows_something(torch.cat(truths))
    for output, truth in zip(outputs, truths, strict=True):
        losses.append(mask_loss([layer.float() for layer in output.logits], truth))
    loss = torch.stack(losses).mean() + presence_weight * presence_loss(presence, present)
    probability = torch.cat([mask_probability(output.logits[-1], sequences.size) for output in outputs])
    scores = {
        "propagated": mean_dice(probability, torch.cat(truths)),
        "beyond": torch.where(present < 0.5, (presence > 0).float(), torch.nan).nanmean(),
    }
    return loss, scores


class EncodedSequences:
    """The encoded slices of a batch of sequences."""

    def __init__(self, model: KPrism, batch: SequenceBatch, features: ImageFeatures | None = None) -> None:
        self.model, self.batch = model, batch
        self.count, self.length = batch.images.shape[:2]
        self.size = (batch.images.shape[-2], batch.images.shape[-1])
        self.features = model.encode_image(batch.images.flatten(0, 1)) if features is None else features
        self.projected = model.project(self.features)
        self.first = self.length * torch.arange(self.count, device=batch.images.device)

    def outwards(self, mask: Tensor, recent: int) -> list[Decoded]:
        """Predict slice after slice, each from the network's own mask before; `mask` (n, 1, H, W) is on the first."""
        prompted, last = self.reference(0, mask), list[References]()
        outputs = []
        for number in range(1, self.length):
            output = self.decode(number, [prompted, *last[-recent:]] if recent else [prompted], mask)
            outputs.append(output)
            answer = mask_probability(output.logits[-1], self.size)
            # A structure that seems to have ended is looked for where it was seen last.
            seen = (answer > 0.5).flatten(1).any(1)[:, None, None, None]
            mask = torch.where(seen, answer, mask)
            if recent and number + 1 < self.length:
                last.append(self.reference(number, (mask > 0.5).float()))
        return outputs

    def between(self, user: SimulatedUser) -> Decoded:
        """Predict the slices between the first and the last from both, and from masks that are roughly right."""
        inner = range(1, self.length - 1)
        references = join_references(
            [self.reference(0, self.batch.masks[:, 0]), self.reference(-1, self.batch.masks[:, -1])]
        )
        rows = torch.arange(self.count, device=self.first.device).repeat_interleave(len(inner))
        truth = self.batch.masks[:, 1:-1].flatten(0, 1)
        previous = user.propagated_masks(
            torch.where(shows_something(truth)[:, None, None, None] > 0, truth, self._first_masks(rows))
        )
        images = (self.first[:, None] + torch.tensor(list(inner), device=self.first.device)).flatten()
        prompts = Prompts(self.size, images, references=references.select(rows), dense=without_clicks(previous))
        return self.model.decode(self.features, prompts, projected=self.projected)

    def clicked(self, user: SimulatedUser) -> Tensor:
        """The network's masks (n, 1, H, W) of the first slices after two clicks; the true ones where it fails."""
        truth = self.batch.masks[:, 0]
        with torch.no_grad():
            nothing = torch.zeros_like(truth)
            points, labels = user.clicks(nothing, truth)
            dense = torch.cat([click_discs(points, labels, self.size), nothing], dim=1)
            prompts = Prompts(self.size, self.first, points=points, point_labels=labels, dense=dense)
            answer = self._answer(prompts)
            prompts = with_next_click(prompts, answer, truth, user)
            answer = self._answer(prompts)
        usable = row_dice(answer, truth) >= _USABLE_DICE
        return torch.where(usable[:, None, None, None], answer, truth)

    def _answer(self, prompts: Prompts) -> Tensor:
        decoded = self.model.decode(self.features, prompts, projected=self.projected)
        return mask_probability(decoded.logits[-1], self.size)

    def decode(self, number: int, references: Sequence[References], previous: Tensor) -> Decoded:
        """Predict one slice of each sequence."""
        prompts = Prompts(
            self.size, self.first + number, references=join_references(references), dense=without_clicks(previous)
        )
        return self.model.decode(self.features, prompts, projected=self.projected)

    def reference(self, number: int, mask: Tensor) -> References:
        """A slice of each sequence with a mask (n, 1, H, W), as a reference."""
        number %= self.length
        features = ImageFeatures(*(scale.index_select(0, self.first + number) for scale in self.features))
        images = self.batch.images[:, number : number + 1]
        return self.model.encode_references(images, (mask > 0.5).float()[:, None], features)

    def _first_masks(self, rows: Tensor) -> Tensor:
        return self.batch.masks[rows, 0]


def shows_something(masks: Tensor) -> Tensor:
    """Whether each mask (N, 1, H, W) shows something, (N,) of 0 and 1."""
    return masks.flatten(1).any(dim=1).float()
