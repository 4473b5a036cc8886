# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a published network on the cases of one site, without forgetting what it could do before.

Four means against forgetting. Only `TUNED` is trained, the decoder's layers with their mixtures of experts and the rows
of the classes: what the encoders see and the heads draw serves all classes, a site's few cases can only narrow it, and
a step costs less. The other three can be switched off: distillation (on the same images, for classes that nobody
annotated there, the network must answer as the anchor does; arXiv 1606.09282), a pull towards the anchor's weights
(L2-SP, arXiv 1802.01483), and averaging the anchor's weights and the new ones (WiSE-FT, arXiv 2109.01903), where
`mixed` makes the candidates from which validation chooses. The anchor are the weights that nothing of may be lost; if
it stays the same in a row of trainings, what these forget does not add up.
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
from torch.nn import functional as F

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.batch import Batch
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import Decoded, KPrism
from kprism_model.network.prompts import Prompts
from kprism_model.network.references import References
from kprism_model.store import is_out_of_memory
from kprism_model.training.distributed import Workers
from kprism_model.training.trainer import Trainer, TrainingPlan, coarse_size
from kprism_model.training.training_step import StepSettings, training_step
from kprism_model.training.unwaited import Record
from kprism_model.training.warm_start import CLASS_TABLES

logger = logging.getLogger(__name__)

SITE_MIXTURE = Mixture(elsewhere=0.0, synthetic=0.0, regions=0.0)
"""Images of other data sets may hold a structure without its label here, so they are no example of its absence."""

TUNED = ("decoder.layers.", *CLASS_TABLES)
"""Beginnings of the names of what is trained.

With the presence head too, what the network knew is soon taken for absent; with the encoders, it is lost altogether.
"""

_SMALLEST_BATCH = 2  # an image and its reference


@dataclass(frozen=True)
class FinetunePlan:
    """How to fine-tune: `minutes` of budget, and the weights of what keeps the network from forgetting.

    `distillation` weighs its loss, `pull` is the share of the distance to the anchor's weights that a step at
    learning rate 1 would take back; 0 switches them off. `tuned` are beginnings of the names of what is trained;
    never the image encoder, whose features the anchor shares. `summary_start` lets new classes start from the
    summaries of their first cases, else from the mean class.
    """

    minutes: float = 10.0
    batch_size: int = 8
    learning_rate: float = 3e-4
    distillation: float = 5.0
    pull: float = 0.5
    tuned: tuple[str, ...] = TUNED
    summary_start: bool = True
    seed: int = 0
    save_minutes: float = 0.5

    def training_plan(self, native: int) -> TrainingPlan:
        """The plan of the underlying trainer: smaller images for the first half of the budget."""
        return TrainingPlan(
            minutes=self.minutes,
            batch_size=self.batch_size,
            sizes=((0.0, coarse_size(native)), (0.5, native)),
            learning_rate=self.learning_rate,
            warmup_steps=20,
            ema_decay=0.99,
            rounds=StepSettings(kind_weight=0.0),  # the kinds of a site's images are not told
            seed=self.seed,
            save_minutes=self.save_minutes,
        )


class Finetuner(Trainer):
    """A trainer that starts from a published checkpoint; `identity` says what it trains on.

    `anchor` holds the weights that nothing of may be lost: by default the published ones, else some that these descend
    from, with the first of their classes (ValueError if not). `starts` are encoded references of the classes that are
    new, by name. Where memory runs out the batch is halved and gradients of two are added up instead.
    """

    def __init__(
        self,
        published: Checkpoint,
        store: SliceStore,
        plan: FinetunePlan,
        folder: Path,
        *,
        anchor: Checkpoint | None = None,
        starts: Mapping[str, References] | None = None,
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
            parameter.requires_grad_(name.startswith(plan.tuned))
        if self.model.kind_head is not None:  # what the site labels can be in its images, whatever their kind
            labelled = sorted(set().union(*self._annotated.values()))
            self.model.kind_head.possible[labelled] = True
        self._statistics = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        if not self.step:
            self._start_new_classes(published.model.to(self.device), starts or {})

    @property
    def registry(self) -> ClassRegistry:
        """The classes of the published network and the new ones behind them."""
        return self.sampler.registry

    @torch.no_grad()
    def _start_new_classes(self, published: KPrism, starts: Mapping[str, References]) -> None:
        """Rows of classes that the published network lacks: from their references, else the mean of the others."""
        for name in self.registry.names[published.config.num_classes :]:
            row = self.registry.index(name)
            if self.settings.summary_start and name in starts:
                rows = class_from_references(published, starts[name])
            else:
                content, position = _class_tables(published)
                rows = content.mean(0), position.mean(0)
            for key, table, value in zip(CLASS_TABLES, _class_tables(self.model), rows, strict=True):
                table[row] = value
                self.average.state[key][row] = value

    def _steps(self) -> Iterator[dict[str, float]]:
        while self.share < 1:
            try:
                yield from super()._steps()
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self._shrink():
                    raise

    def _shrink(self) -> bool:
        """Halve the batch; False if it cannot be smaller."""
        size = self.plan.batch_size
        if size <= _SMALLEST_BATCH or self.workers.count > 1:
            return False
        self.optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = self.plan.accumulate * 2
        self.plan = replace(self.plan, batch_size=max(_SMALLEST_BATCH, size // 2), accumulate=parts)
        logger.warning("Too little memory for %d images; going on with %d at a time", size, self.plan.batch_size)
        return True

    def _train_step(self, batches: Iterator[Batch]) -> Record:
        record = super()._train_step(batches)
        if self.settings.pull:
            self._pull_back(min(1.0, float(record["rate"]) * self.settings.pull))
        return record

    @torch.no_grad()
    def _pull_back(self, share: float) -> None:
        """Go back a share of the way to the anchor's weights; classes that it lacks are free."""
        anchors = dict(self.anchor.named_parameters())
        for name, parameter in self.model.named_parameters():
            anchor = anchors[name]
            parameter[: len(anchor)].lerp_(anchor, share) if name in CLASS_TABLES else parameter.lerp_(anchor, share)

    def _practise(self, batch: Batch, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        for module in self._statistics:
            module.eval()
        batch = batch.to(self.device)
        with self._autocast():
            with torch.no_grad():
                features = self.model.encode_image(batch.images)
            rng = np.random.default_rng([self.plan.seed, self.step, part])
            loss, scores = training_step(self.model, batch, rng, self.plan.rounds, features)
            if self.settings.distillation:
                rng = np.random.default_rng([self.settings.seed, 3, self.step, part])
                distilled = self._distil(batch, features, rng)
                if distilled is not None:
                    loss = loss + self.settings.distillation * distilled
                    scores["distillation"] = distilled.detach()
        return loss, scores

    def _distil(self, batch: Batch, features: ImageFeatures, rng: np.random.Generator) -> Tensor | None:
        """How far the answers for a class in each image that is not annotated there are from the anchor's."""
        chosen: list[tuple[int, int]] = []
        for row, name in enumerate(batch.dataset):
            free = sorted(set(range(self.anchor.config.num_classes)) - self._annotated[name])
            if free:
                chosen.append((row, int(rng.choice(free))))
        if not chosen:
            return None
        rows, classes = torch.tensor(chosen, device=self.device).unbind(1)
        prompts = Prompts((batch.images.shape[-2], batch.images.shape[-1]), rows, class_index=classes)
        with torch.no_grad():
            wanted = self.anchor.decode(features, prompts)
        return distillation_loss(self.model.decode(features, prompts), wanted)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), **self._extra_identity}


def distillation_loss(answered: Decoded, wanted: Decoded) -> Tensor:
    """Divergence of masks (last layer, mean over pixels) and of presence from those that are wanted; 0 if equal."""
    pairs = [(answered.logits[-1], wanted.logits[-1]), (answered.presence, wanted.presence)]
    return torch.stack([_divergence(logits.float(), target.float().sigmoid()) for logits, target in pairs]).sum()


def _divergence(logits: Tensor, probability: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of Bernoulli distributions: cross-entropy less the target's own entropy."""
    entropy = F.binary_cross_entropy(probability, probability)
    return F.binary_cross_entropy_with_logits(logits, probability) - entropy


@torch.no_grad()
def class_from_references(model: KPrism, references: References) -> tuple[Tensor, Tensor]:
    """Content and position (queries, C) of a class that is known from one row of R references only.

    The tokens that stand for the object of a reference play the part in the decoder that class queries play, so their
    mean over references and scales is where a class can start; its queries share the tokens out.
    """
    decoder = model.decoder
    half, queries = model.config.summaries // 2, model.config.queries_per_class
    contents, positions = [], []
    for summaries in references.summaries:  # (1, R, S, C), the first half of S of the object
        objects = summaries[0, :, :half].to(decoder.reference_content.device)
        contents.append((decoder.reference_content[:half] + decoder.summary_to_content(objects)).mean(0))
        positions.append((decoder.reference_position[:half] + decoder.summary_to_position(objects)).mean(0))
    groups = [[token % half for token in part] for part in np.array_split(range(max(half, queries)), queries)]
    content, position = (torch.stack(tokens).mean(0) for tokens in (contents, positions))
    return torch.stack([content[group].mean(0) for group in groups]), torch.stack(
        [position[group].mean(0) for group in groups]
    )


def descends(checkpoint: Checkpoint, anchor: Checkpoint) -> bool:
    """Whether a checkpoint is of the anchor's network and has its classes first, so that their weights compare."""
    known = anchor.registry.names
    same = replace(checkpoint.model.config, num_classes=len(known)) == anchor.model.config
    return same and checkpoint.registry.names[: len(known)] == known


@torch.no_grad()
def mixed(anchor: KPrism, tuned: KPrism, share: float) -> KPrism:
    """A network whose weights are `share` of the tuned and the rest of the anchor's; new classes are the tuned's.

    ValueError for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of the tuned weights must lie in [0, 1], got {share}")
    old = anchor.state_dict()
    state = {}
    for name, new in tuned.state_dict().items():
        before = old[name].to(new.device)
        if name in CLASS_TABLES:
            state[name] = torch.cat([before.lerp(new[: len(before)], share), new[len(before) :]])
        else:
            state[name] = before.lerp(new, share) if new.is_floating_point() else new.clone()
    model = KPrism(tuned.config)
    model.load_state_dict(state)
    return model.to(next(tuned.parameters()).device).eval()


def _class_tables(model: KPrism) -> tuple[Tensor, Tensor]:
    return model.decoder.class_content.data, model.decoder.class_position.data
