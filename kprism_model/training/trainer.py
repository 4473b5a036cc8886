# SPDX-License-Identifier: Apache-2.0
"""Joint training of the three modes within a budget of minutes; a killed training can be resumed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kprism_model.checkpoint import Checkpoint
from kprism_model.data.batch import Batch
from kprism_model.data.prefetch import prefetched
from kprism_model.data.sampling import BatchSource
from kprism_model.data.sequence_sampling import SequenceSampler
from kprism_model.network.config import KPrismConfig
from kprism_model.network.efficientnet import load_imagenet
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.training.distributed import Workers
from kprism_model.training.optimization import MovingAverage, parameter_groups, step_if_finite
from kprism_model.training.plan import TrainingPlan, autocast_type
from kprism_model.training.propagation_step import propagation_step
from kprism_model.training.run_state import has_state, load_state, optimizer_moments, restore_moments, save_state
from kprism_model.training.step_log import NOT_SCORES, PendingRecords, Record, append_record, truncate_log
from kprism_model.training.time_budget import TimeBudget
from kprism_model.training.training_step import training_step
from kprism_model.training.weights import warm_start

_FETCH_EVERY = 10  # steps whose losses are fetched from a GPU together, so that it seldom waits
_RECENT_STEPS = 50


class Trainer:
    """Trains one network on one source of batches; `folder` holds everything that is needed to resume.

    With several `workers` each process trains on its own batches, and only the first one writes. A new run starts from
    the weights of `initial` as far as they fit, and its image encoder from the ImageNet tensors `imagenet`.
    Propagation is trained on `sequences`, if the plan has any. `processes` make the batches; if 0, one thread does.
    `after_save` is called whenever the state has been saved: every few minutes and at the end. Its time counts as
    training. ValueError if `folder` holds the state of another run.
    """

    def __init__(
        self,
        config: KPrismConfig,
        sampler: BatchSource,
        plan: TrainingPlan,
        folder: Path,
        *,
        device: str = "cpu",
        sequences: SequenceSampler | None = None,
        processes: int = 0,
        workers: Workers | None = None,
        initial: Checkpoint | None = None,
        imagenet: Mapping[str, Tensor] | None = None,
        after_save: Callable[[Trainer], None] | None = None,
    ) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.sampler, self.folder = plan, sampler, folder
        self.workers = workers or Workers()
        self.device = self.workers.device(device)
        self.autocast_type = autocast_type(plan.precision, self.device)
        self.model = KPrism(config)
        if initial is not None:
            warm_start(self.model, sampler.registry, initial)
        if imagenet is not None:
            load_imagenet(self.model.image_encoder, imagenet)
        self.model.to(self.device)
        self._after_save = after_save
        self._sequences = sequences if plan.sequences else None
        self._processes = processes
        self.average = MovingAverage(self.model, plan.ema_decay)
        groups = parameter_groups(self.model, plan.weight_decay, plan.trunk_rate)
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, fused=self.device.type in ("cpu", "cuda"))
        self._pending = PendingRecords(_FETCH_EVERY if self.device.type == "cuda" else 1)
        self.step = 0
        self.budget = TimeBudget(plan.minutes, plan.steps)
        self._saved_step = -1
        self.recent: dict[str, deque[float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if has_state(folder):
            self._load()

    @property
    def seconds(self) -> float:
        """Seconds of the budget that are spent, over all resumptions."""
        return self.budget.seconds

    @property
    def share(self) -> float:
        """Share of the budget that is spent."""
        return self.budget.share

    def run(self) -> KPrism:
        """Train until the budget is spent; returns the averaged network in evaluation mode.

        `kprism_model.training.loop.fit` does the same with TensorBoard curves and a progress bar.
        """
        for _ in self.steps():
            pass
        return self.averaged()

    def steps(self) -> Iterator[dict[str, float]]:
        """Train until the budget is spent; yields the record of each step, which is in the log already."""
        saved = time.monotonic()
        for record in self._train():
            self._log(record)
            yield record
            if time.monotonic() - saved > 60 * self.plan.save_minutes:
                self._checkpoint()
                saved = time.monotonic()
        self._checkpoint()

    def averaged(self) -> KPrism:
        """A copy of the network with the averaged weights, in evaluation mode."""
        model = KPrism(self.model.config)
        model.load_state_dict(self.average.state)
        return model.to(self.device).eval()

    def recent_means(self) -> dict[str, float]:
        """Means of the scores of the latest steps, by name; NaN (nothing to score) is left out."""
        known = {name: [value for value in values if value == value] for name, values in sorted(self.recent.items())}
        return {name: float(np.mean(values)) for name, values in known.items() if values}

    def save(self) -> None:
        """Write the state; the first process does it, and only if steps were made since the last time."""
        if self._saved_step == self.step or self.workers.rank:
            return  # never rewrite a file that the present state names
        parts = {
            "model": self.model.state_dict(),
            "average": self.average.state,
            "adam": optimizer_moments(self.optimizer),
        }
        spent = {"seconds": self.seconds, "taken": self.budget.taken}
        save_state(self.folder, self.step, parts, {**spent, **self._identity()})
        self._saved_step = self.step

    def _checkpoint(self) -> None:
        self.save()
        if self._after_save is not None:
            start = time.monotonic()
            self._after_save(self)
            self.budget.seconds += time.monotonic() - start

    def _train(self) -> Iterator[dict[str, float]]:
        """Train step by step until the budget is spent; yields the records of steps as they become known."""
        self.model.train()
        self.workers.share_state(self.model)
        spent = 0.0
        while self.share < 1:
            size = self.plan.size_at(self.share)
            first = self.step * self.plan.accumulate
            pin = self.device.type == "cuda"
            draw = partial(self._draw, size=size)
            with prefetched(draw, start=first, processes=self._processes, pin=pin) as batches:
                while self.share < 1 and self.plan.size_at(self.share) == size:
                    start = time.monotonic()
                    records = self._pending.add(self._train_step(batches))
                    spent += time.monotonic() - start
                    if records:  # the device has finished these steps, so the time is that of the work
                        self.budget.add_step(self.workers.longest(spent, self.device))
                        spent = 0.0
                    yield from records

    def _draw(self, number: int, size: int) -> Batch:
        """The batch of this process that is the `number`-th of the run."""
        step = number * self.workers.count + self.workers.rank
        batch = self.sampler.batch(self.plan.batch_size, step=step, size=size)
        if self._sequences is None:
            return batch
        sequences = self._sequences.batch(self.plan.sequences, self.plan.sequence_length, step=step, size=size)
        return replace(batch, sequences=sequences)

    def _train_step(self, batches: Iterator[Batch]) -> Record:
        rate = self.plan.rate_at(self.step, self.share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.zero_grad()
        record: dict[str, float | Tensor] = {"step": self.step, "rate": rate, "loss": 0.0}
        for part in range(self.plan.accumulate):
            batch = next(batches)
            loss, scores = self._batch_loss(batch, part)
            (loss / self.plan.accumulate).backward()
            record["loss"] += loss.detach() / self.plan.accumulate
            record["size"] = batch.images.shape[-1]
            record |= scores
        self.workers.average_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        step_if_finite(self.optimizer, norm)
        self.average.update(self.model, self.step)
        self.step += 1
        self.budget.taken += 1
        return record

    def _batch_loss(self, batch: Batch, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and scores of the batch that is the `part`-th of `accumulate` in this step."""
        rng = np.random.default_rng([self.plan.seed, self.step, part])
        batch = batch.to(self.device)
        sequences = batch.sequences
        with self._autocast():
            if sequences is None:
                return training_step(self.model, batch, rng, self.plan.step)
            # Encoded together: the slices of a few sequences alone would be too much alike for batch normalization.
            features = self.model.encode_image(torch.cat([batch.images, sequences.images.flatten(0, 1)]))
            images, slices = _split(features, len(batch.images))
            loss, scores = training_step(self.model, batch, rng, self.plan.step, images)
            propagation, more = propagation_step(
                self.model, sequences, rng, self.plan.step.presence_weight, features=slices
            )
            return loss + self.plan.propagation_weight * propagation, scores | more

    def _autocast(self) -> torch.autocast:
        """The context in which the network is trained."""
        kind = self.autocast_type
        return torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None)

    def _log(self, record: Mapping[str, float]) -> None:
        """Keep the scores of a step for `recent_means`; the first process writes the step to the log."""
        for name, value in record.items():
            if name not in NOT_SCORES:
                self.recent.setdefault(name, deque(maxlen=_RECENT_STEPS)).append(value)
        if self.workers.rank == 0:
            append_record(self.folder, record)

    def _load(self) -> None:
        content, parts = load_state(self.folder, self._identity())
        self.model.load_state_dict(parts["model"])
        self.average.state = {name: value.to(self.device) for name, value in parts["average"].items()}
        restore_moments(self.optimizer, parts["adam"])
        self.step, self.budget.seconds = content["step"], content["seconds"]
        self.budget.taken = content.get("taken", self.step)  # states of earlier versions do not have it
        self._saved_step = self.step
        if self.workers.rank == 0:
            truncate_log(self.folder, self.step)

    def _identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed: the network, the classes of its rows, the seed."""
        classes = self.sampler.registry.to_list()
        return {"config": self.model.config.to_dict(), "classes": classes, "seed": self.plan.seed}


def _split(features: ImageFeatures, count: int) -> tuple[ImageFeatures, ImageFeatures]:
    """The features of the first `count` images, and those of the others."""
    return ImageFeatures(*(scale[:count] for scale in features)), ImageFeatures(*(scale[count:] for scale in features))
