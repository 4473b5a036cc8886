# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a published network on the cases of one site, without forgetting what it could do before.

Four measures prevent forgetting. Only the parameters of `TRAINABLE` are trained: the layers of the decoder with their
mixtures of experts, and the rows of the classes. The encoders and the mask heads serve all classes; the few cases of a
site could only make them worse, and without them a step takes less time. The other three can be switched off:
distillation (for classes that nobody annotated in an image, the network must answer as the anchor does; Learning
without Forgetting, arXiv 1606.09282), a pull towards the anchor's weights (L2-SP, arXiv 1802.01483), and averaging the
weights of the anchor and of the tuned network (WiSE-FT, arXiv 2109.01903), for which `interpolate_weights` makes the
candidates that validation chooses from.

The anchor is the network whose abilities must be kept. If it stays the same over several trainings, the losses of each
do not add up.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.batch import Batch
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.losses import distillation_loss
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import Prompts
from kprism_model.network.references import References
from kprism_model.store import is_out_of_memory
from kprism_model.training.distributed import Workers
from kprism_model.training.plan import TrainingPlan, coarse_size
from kprism_model.training.schedule import StepSettings
from kprism_model.training.step_log import Record
from kprism_model.training.trainer import Trainer
from kprism_model.training.training_step import training_step
from kprism_model.training.weights import CLASS_TABLES, class_from_references, class_tables, descends

logger = logging.getLogger(__name__)

SITE_MIXTURE = Mixture(elsewhere=0.0, synthetic=0.0, regions=0.0)
"""An image of another data set may show a structure without a label for it, so none serves as an example of absence."""

TRAINABLE = ("decoder.layers.", *CLASS_TABLES)
"""Prefixes of the names of the trained parameters.

With the presence head among them, the network soon reports known structures as absent; with the encoders, it forgets
them altogether.
"""

_MIN_BATCH_SIZE = 2  # an image and its reference


@dataclass(frozen=True)
class FinetunePlan:
    """Hyperparameters of a fine-tuning: `minutes` is its time budget.

    `distillation` is the weight of its loss; `pull` is the share of the distance to the anchor's weights that a step at
    learning rate 1 would take back. 0 switches either off. `trainable` are prefixes of the names of the trained
    parameters; the image encoder must not be among them, because the anchor uses its features. With
    `start_from_references` a new class starts from the summaries of its first cases, otherwise from the mean class.
    """

    minutes: float = 10.0
    batch_size: int = 8
    learning_rate: float = 3e-4
    distillation: float = 5.0
    pull: float = 0.5
    trainable: tuple[str, ...] = TRAINABLE
    start_from_references: bool = True
    seed: int = 0
    save_minutes: float = 0.5

    def training_plan(self, native: int) -> TrainingPlan:
        """The plan for a network that works at `native` pixels: smaller images for the first half of the budget."""
        return TrainingPlan(
            minutes=self.minutes,
            batch_size=self.batch_size,
            sizes=((0.0, coarse_size(native)), (0.5, native)),
            learning_rate=self.learning_rate,
            warmup_steps=20,
            ema_decay=0.99,
            step=StepSettings(kind_weight=0.0),  # nobody says of what kind the images of a site are
            seed=self.seed,
            save_minutes=self.save_minutes,
        )


class Finetuner(Trainer):
    """A trainer that starts from a published checkpoint; `identity` says what it is trained on.

    `anchor` is the checkpoint whose abilities must be kept: by default `published`, otherwise one from which it
    descends. `class_references` are encoded references of the new classes, by name. When memory runs out, the batch is
    halved and the gradients of twice as many batches are accumulated. ValueError if `published` does not descend from
    the anchor.
    """

    def __init__(
        self,
        published: Checkpoint,
        store: SliceStore,
        plan: FinetunePlan,
        folder: Path,
        *,
        anchor: Checkpoint | None = None,
        class_references: Mapping[str, References] | None = None,
        identity: Mapping[str, Any] | None = None,
        device: str = "cpu",
        workers: Workers | None = None,
    ) -> None:
        anchor = anchor or published
        if not descends(published, anchor):
            raise ValueError(f"{published.path} does not descend from {anchor.path}: another network, or other classes")
        self.settings, self._extra_identity = plan, dict(identity or {})
        registry = published.registry.add([name for name in store.class_names if name not in published.registry])
        config = replace(published.model.config, num_classes=len(registry))
        self._annotated = {part.name: {registry.index(name) for name in part.classes.values()} for part in store.sets}
        sampler = Sampler(store, seed=plan.seed, registry=registry, mixture=SITE_MIXTURE)
        super().__init__(
            config,
            sampler,
            plan.training_plan(config.native_size),
            folder,
            device=device,
            workers=workers,
            initial=published,
        )
        self.anchor = anchor.model.to(self.device).eval().requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(plan.trainable))
        if self.model.kind_head is not None:  # what a site labels can be in images of every kind
            labelled = sorted(set().union(*self._annotated.values()))
            self.model.kind_head.possible[labelled] = True
        self._batch_norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        if not self.step:
            self._init_new_classes(published.model.to(self.device), class_references or {})

    @property
    def registry(self) -> ClassRegistry:
        """The classes of the published network, then the new ones."""
        return self.sampler.registry

    @torch.no_grad()
    def _init_new_classes(self, published: KPrism, class_references: Mapping[str, References]) -> None:
        """Set the rows of classes that the published network lacks: from references, else the mean of its classes."""
        for name in self.registry.names[published.config.num_classes :]:
            row = self.registry.index(name)
            if self.settings.start_from_references and name in class_references:
                rows = class_from_references(published, class_references[name])
            else:
                content, position = class_tables(published)
                rows = content.mean(0), position.mean(0)
            for key, table, value in zip(CLASS_TABLES, class_tables(self.model), rows, strict=True):
                table[row] = value
                self.average.state[key][row] = value

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

    def _train_step(self, batches: Iterator[Batch]) -> Record:
        record = super()._train_step(batches)
        if self.settings.pull:
            self._pull_back(min(1.0, float(record["rate"]) * self.settings.pull))
        return record

    @torch.no_grad()
    def _pull_back(self, share: float) -> None:
        """Move a share of the way back to the anchor's weights; classes that it lacks stay where they are."""
        anchors = dict(self.anchor.named_parameters())
        for name, parameter in self.model.named_parameters():
            anchor = anchors[name]
            parameter[: len(anchor)].lerp_(anchor, share) if name in CLASS_TABLES else parameter.lerp_(anchor, share)

    def _batch_loss(self, batch: Batch, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        for module in self._batch_norms:
            module.eval()
        batch = batch.to(self.device)
        with self._autocast():
            with torch.no_grad():
                features = self.model.encode_image(batch.images)
            rng = np.random.default_rng([self.plan.seed, self.step, part])
            loss, scores = training_step(self.model, batch, rng, self.plan.step, features)
            if self.settings.distillation:
                rng = np.random.default_rng([self.settings.seed, 3, self.step, part])
                distillation = self._distillation_loss(batch, features, rng)
                if distillation is not None:
                    loss = loss + self.settings.distillation * distillation
                    scores["distillation"] = distillation.detach()
        return loss, scores

    def _distillation_loss(self, batch: Batch, features: ImageFeatures, rng: np.random.Generator) -> Tensor | None:
        """Divergence from the anchor for one class of each image that is not annotated there; None if there is none."""
        chosen: list[tuple[int, int]] = []
        for row, name in enumerate(batch.dataset):
            unannotated = sorted(set(range(self.anchor.config.num_classes)) - self._annotated[name])
            if unannotated:
                chosen.append((row, int(rng.choice(unannotated))))
        if not chosen:
            return None
        rows, classes = torch.tensor(chosen, device=self.device).unbind(1)
        prompts = Prompts((batch.images.shape[-2], batch.images.shape[-1]), rows, class_index=classes)
        with torch.no_grad():
            teacher = self.anchor.decode(features, prompts)
        return distillation_loss(self.model.decode(features, prompts), teacher)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), **self._extra_identity}
