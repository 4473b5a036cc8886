# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a copy of the network on the cases of one site.

All weights are trained at the rates of pretraining, without anything that holds them back: what the published network
knows is not at risk, because that network stays as it is and answers for its structures beside the tuned copy. On a
site's own structures this is better than adapters or a frozen encoder (docs/learning-measured.md).

A step encodes each image once and predicts all structures that were annotated in it by name; by chance one of them is
also given by references, or corrected by clicks that start from its predicted mask.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.annotated_sampling import AnnotatedBatch, AnnotatedSampler, RecordedClicks, Weights
from kprism_model.data.batch import Batch
from kprism_model.data.partial import AnnotatedCase
from kprism_model.data.slices import SliceStore
from kprism_model.losses import mask_loss, presence_loss
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kinds import POSSIBLE
from kprism_model.network.prompts import Prompts, click_discs
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.store import is_out_of_memory
from kprism_model.training.distributed import Workers
from kprism_model.training.mask_scores import mask_probability, mean_dice
from kprism_model.training.plan import TrainingPlan, coarse_size
from kprism_model.training.run_state import EndState, has_state, restore_moments
from kprism_model.training.schedule import StepSettings
from kprism_model.training.trainer import Trainer
from kprism_model.training.training_step import training_step
from kprism_model.training.weights import CLASS_TABLES, class_from_references, class_tables

logger = logging.getLogger(__name__)

MAX_REFERENCE_CASES = 6
"""Cases of a structure that are the start of a new class."""

_MIN_BATCH_SIZE = 2  # an image and its reference


@dataclass(frozen=True)
class FinetunePlan:
    """Hyperparameters of a fine-tuning: `minutes` is its time budget; `steps`, if given, are its budget instead.

    `in_context` and `interactive` are the chances of a step to train these modes too, besides semantic.
    """

    minutes: float = 1.5
    batch_size: int = 2
    learning_rate: float = 5e-4
    in_context: float = 0.2
    interactive: float = 0.6
    seed: int = 0
    save_minutes: float = 0.5
    steps: int | None = None

    def training_plan(self, native: int) -> TrainingPlan:
        """The plan for a network that works at `native` pixels: smaller images and the full rate for most of the time.

        The rate falls at the end alone (warm-up, stable, decay; arXiv 2404.06395), so that the next training can go on.
        """
        return TrainingPlan(
            minutes=self.minutes,
            batch_size=self.batch_size,
            sizes=((0.0, coarse_size(native)), (0.7, native)),
            learning_rate=self.learning_rate,
            warmup_steps=20,
            decay_from=0.7,
            ema_decay=0.99,
            seed=self.seed,
            save_minutes=self.save_minutes,
            steps=self.steps,
        )


def largest_slices(predictor: Predictor, cases: Sequence[AnnotatedCase], name: str) -> References:
    """A structure's encoded references: its largest slice in each of the first `MAX_REFERENCE_CASES` cases.

    All cases must show it; there must be one or more.
    """
    chosen = list(cases[:MAX_REFERENCE_CASES])
    numbers = [int(case.mask(name).sum(axis=(1, 2)).argmax()) for case in chosen]
    return predictor.embed_references(
        [case.picture(number) for case, number in zip(chosen, numbers, strict=True)],
        [case.mask(name)[number] for case, number in zip(chosen, numbers, strict=True)],
    )


class Finetuner(Trainer):
    """A trainer that starts from a checkpoint; `identity` says what it is trained on.

    `without` are patients that it must not see; `weights` say which slices are drawn more often; `clicks` are those
    that annotators made, which are replayed. `class_references` are encoded references of the new classes, by name.
    `continued` is the end of the training that made `start`, which this one goes on from. When memory runs out, the
    batch is halved and the gradients of twice as many batches are accumulated.
    """

    def __init__(
        self,
        start: Checkpoint,
        store: SliceStore,
        plan: FinetunePlan,
        folder: Path,
        *,
        without: Collection[str] = (),
        weights: Weights | None = None,
        clicks: RecordedClicks | None = None,
        class_references: Mapping[str, References] | None = None,
        continued: EndState | None = None,
        identity: Mapping[str, Any] | None = None,
        device: str = "cpu",
        workers: Workers | None = None,
    ) -> None:
        self._extra_identity = dict(identity or {})
        registry = start.registry.add([name for name in store.class_names if name not in start.registry])
        config = replace(start.model.config, num_classes=len(registry))
        super().__init__(
            config,
            AnnotatedSampler(store, registry, seed=plan.seed, without=without, weights=weights, clicks=clicks),
            plan.training_plan(config.native_size),
            folder,
            device=device,
            workers=workers,
            initial=start,
        )
        if self.model.kind_head is not None:  # what a site labels can be in images of every kind
            labelled = sorted(registry.index(name) for name in store.class_names)
            self.model.kind_head.possible[labelled] = True
            self.average.state[POSSIBLE][labelled] = True
            self.model.kind_head.requires_grad_(False)
        self._chances = np.array([plan.in_context, plan.interactive])
        self._batch_norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        if not has_state(folder):
            self._init_new_classes(start, class_references or {})
            if continued is not None:
                self._continue(continued)

    @property
    def registry(self) -> ClassRegistry:
        """The classes of the start, then the new ones."""
        return self.sampler.registry

    @torch.no_grad()
    def _init_new_classes(self, start: Checkpoint, class_references: Mapping[str, References]) -> None:
        """Set the rows of classes that the start lacks: from references, else the mean of its classes."""
        published = start.model.to(self.device)
        for name in self.registry.names[len(start.registry) :]:
            row = self.registry.index(name)
            if name in class_references:
                rows = class_from_references(published, class_references[name])
            else:
                content, position = class_tables(published)
                rows = content.mean(0), position.mean(0)
            for key, table, value in zip(CLASS_TABLES, class_tables(self.model), rows, strict=True):
                table[row] = value
                self.average.state[key][row] = value

    @torch.no_grad()
    def _continue(self, end: EndState) -> None:
        """Take up weights, their average and the optimizer's moments; classes that came since keep their start.

        ValueError if the state is of another network.
        """
        if end.classes != self.registry.names[: len(end.classes)]:
            raise ValueError(f"the last training ended with the classes {end.classes}, not {self.registry.names}")
        for part, own in (("model", self.model.state_dict()), ("average", self.average.state)):
            for name, value in end.parts[part].items():
                if name in (*CLASS_TABLES, POSSIBLE):
                    own[name][: len(value)] = value
                else:
                    own[name].copy_(value)
        restore_moments(self.optimizer, end.parts["adam"])
        self.step = end.step

    def _train(self) -> Iterator[dict[str, float]]:
        while self.share < 1:
            try:
                yield from super()._train()
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._halve_batch():
                    raise

    def _halve_batch(self) -> bool:
        """Halve the batch; False if it cannot be smaller."""
        size = self.plan.batch_size
        if size <= _MIN_BATCH_SIZE or self.workers.count > 1:
            return False
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = self.plan.accumulate * 2
        self.plan = replace(self.plan, batch_size=max(_MIN_BATCH_SIZE, size // 2), accumulate=parts)
        logger.warning("Not enough memory for batches of %d images; continuing with %d", size, self.plan.batch_size)
        return True

    def _batch_loss(self, batch: Batch, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(batch, AnnotatedBatch)
        for module in self._batch_norms:
            module.eval()  # the statistics of a few alike images would replace those of pretraining
        batch = batch.to(self.device)
        rng = np.random.default_rng([self.plan.seed, self.step, part])
        in_context, interactive = (float(chance) for chance in rng.random(2) < self._chances)
        with self._autocast():
            features = self.model.encode_image(batch.images)
            loss, predictions, scores = self._semantic_loss(batch, features)
            if in_context or interactive:
                settings = StepSettings(weights=(0.0, in_context, interactive), kind_weight=0.0)
                other, more = training_step(self.model, batch, rng, settings, features, predictions=predictions)
                loss, scores = loss + other, scores | more
            replayed = self._replay_loss(batch, features, predictions) if interactive else None
        return loss if replayed is None else loss + replayed, scores

    def _semantic_loss(
        self, batch: AnnotatedBatch, features: ImageFeatures
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss of all annotated structures by name, and the probabilities (n, 1, S, S) of the one in focus."""
        images, structures = batch.structure_masks.shape[:2]
        size = (batch.images.shape[-2], batch.images.shape[-1])
        index = torch.arange(images, device=self.device).repeat_interleave(structures)
        prompts = Prompts(size, index, class_index=batch.structure_classes.repeat(images))
        decoded = self.model.decode(features, prompts, projected=self.model.project(features))
        target = batch.structure_masks.flatten(0, 1)[:, None]
        logits = [layer.float() for layer in decoded.logits]
        present = target.flatten(1).any(1).float()
        loss = mask_loss(logits, target) + presence_loss(decoded.presence.float(), present)
        probability = mask_probability(logits[-1], size)
        in_focus = (batch.structure_classes == batch.class_index[0]).repeat(images)
        return loss, probability[in_focus], {"semantic": mean_dice(probability, target)}

    def _replay_loss(self, batch: AnnotatedBatch, features: ImageFeatures, predictions: Tensor) -> Tensor | None:
        """The loss of correcting the predicted masks with the clicks that annotators made there; None without any."""
        rows = (batch.point_labels >= 0).any(1).nonzero().flatten()
        if not len(rows):
            return None
        size = (batch.images.shape[-2], batch.images.shape[-1])
        points, labels = batch.points[rows], batch.point_labels[rows]
        dense = torch.cat([click_discs(points, labels, size), predictions[rows]], dim=1)
        prompts = Prompts(size, rows, points=points, point_labels=labels, dense=dense)
        return mask_loss([layer.float() for layer in self.model.decode(features, prompts).logits], batch.masks[rows])

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), **self._extra_identity}
