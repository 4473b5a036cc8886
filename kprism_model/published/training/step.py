# SPDX-License-Identifier: Apache-2.0
"""One step of the published training: the loss of a batch of one mode, with simulated clicks between the iterations.

The step is one module with one forward pass, so that DistributedDataParallel wraps all of it. The encoder runs once,
the decoder once for each iteration. Clicks are drawn without chance, so processes and resumed runs agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kprism_model.interaction.simulated_user import CentralClicks, Clicks
from kprism_model.losses import full_size_mask_loss
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import Prompts, click_discs
from kprism_model.published.training.batch import StepBatch
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.training.mask_scores import mask_probability, row_dice
from kprism_model.training.prompts import with_next_click


class PublishedStep(nn.Module):
    """The network with its loss: call it with a batch."""

    def __init__(self, model: KPrism, recipe: PublishedRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self._user: Clicks = CentralClicks()

    def forward(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and the mean Dice (2,) of the first and of the last masks, without gradient.

        Both are means over the images of the batch: those of parts of equal size have the mean of the whole.
        """
        count = len(batch.class_index)
        masks, size = batch.masks[:count], (batch.images.shape[-2], batch.images.shape[-1])
        features = self.model.encode_image(batch.images[:count])
        projected = self.model.project(features)
        prompts = self._first_prompts(batch, size)
        loss, dice = masks.new_zeros(()), []
        for number in range(self.recipe.iterations):
            logits = [layer.to(masks.dtype) for layer in self.model.decode(features, prompts, projected).logits]
            weights = {"dice_weight": self.recipe.dice_weight, "bce_weight": self.recipe.bce_weight}
            part = full_size_mask_loss(logits, masks, **weights)
            loss = loss + (self.recipe.later_weight * part if number else part)
            probability = mask_probability(logits[-1], size)
            dice.append(row_dice(probability, masks).mean())
            if number + 1 < self.recipe.iterations:
                prompts = with_next_click(prompts, probability, masks, self._user)
        return loss, torch.stack([dice[0], dice[-1]])

    def _first_prompts(self, batch: StepBatch, size: tuple[int, int]) -> Prompts:
        count, device = len(batch.class_index), batch.images.device
        rows = torch.arange(count, device=device)
        if batch.mode == "semantic":
            return Prompts(size, rows, class_index=batch.class_index)
        if batch.mode == "in_context":
            # Encoded apart from the images, as published: batch normalization sees one kind at a time.
            pairs, drawn = batch.images[count:, None], batch.masks[count:, None]
            encoded: ImageFeatures = self.model.encode_image(batch.images[count:])
            return Prompts(size, rows, references=self.model.encode_references(pairs, drawn, encoded))
        masks = batch.masks[:count]
        nothing = torch.zeros_like(masks)
        points, labels = self._user.clicks(nothing, masks)
        dense = torch.cat([click_discs(points, labels, size), nothing], dim=1)
        return Prompts(size, rows, points=points, point_labels=labels, dense=dense)
