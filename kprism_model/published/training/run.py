# SPDX-License-Identifier: Apache-2.0
"""The published training from its first step to its last, by one process or several; it can be stopped at any moment.

Whatever is random in a step comes from the seed and the number of the step, so a resumed run makes the steps of an
unbroken one. Nothing depends on the number of processes but rounding, and the batch normalization of a process that
sees fewer images; `sync_batch_norm` removes that on GPUs.

There is no sharding (FSDP): weights, gradients and the two moments of 40.6 million parameters take 0.65 GB in float32,
which fits beside the activations on any GPU that can hold those.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kprism_model.data.prefetch import prefetched
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.published.training.batch import RawBatch, StepBatch
from kprism_model.published.training.sampling import PublishedSampler
from kprism_model.published.training.step import PublishedStep
from kprism_model.training.distributed import Workers
from kprism_model.training.optimization import step_if_finite
from kprism_model.training.plan import Precision, autocast_type
from kprism_model.training.run_state import has_state, load_state, optimizer_moments, restore_moments, save_state
from kprism_model.training.step_log import PendingRecords, append_record, truncate_log

_FETCH_EVERY = 10  # steps whose values are fetched from a GPU together, so that it seldom waits


@dataclass(frozen=True)
class RunOptions:
    """How the training is run; nothing here changes what is learned. ValueError for what only a GPU can do.

    loaders: processes that make the batches, 0 for a thread. images_at_once: images in a forward pass of a process, by
    default all that fall to it; fewer take more passes a step and less memory. recompute: keep no activations inside of
    the decoder's layers. sync_batch_norm: normalize by the images of all processes; only on GPUs. save_minutes: time
    between savings.
    """

    device: str = "cpu"
    precision: Precision = "auto"
    loaders: int = 0
    images_at_once: int | None = None
    recompute: bool = False
    sync_batch_norm: bool = False
    save_minutes: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what only a GPU can do."""
        if self.sync_batch_norm and not self.device.startswith("cuda"):
            raise ValueError(
                f"batch normalization can be synchronized on GPUs only, not on {self.device!r}: "
                "leave --sync-batch-norm out"
            )


def parts_of_batch(batch: int, workers: int, images_at_once: int | None) -> tuple[int, int]:
    """Forward passes a step in each process, and images in each; ValueError if the batch cannot be divided so."""
    if batch % workers:
        raise ValueError(f"a batch of {batch} images cannot be divided among {workers} processes")
    share = batch // workers
    images = images_at_once or share
    if not 1 <= images <= share or share % images:
        raise ValueError(f"{share} images of a process cannot be divided into passes of {images}")
    return share // images, images


class PublishedTraining:
    """Trains a network of `config` as the sampler's recipe says; `folder` holds all that is needed to resume.

    Only the first of the `workers` writes. `after_epoch` is called by every process at the end of each epoch.
    ValueError if `folder` holds the state of another run, or if the batch cannot be divided.
    """

    def __init__(
        self,
        config: KPrismConfig,
        sampler: PublishedSampler,
        folder: Path,
        options: RunOptions,
        *,
        workers: Workers | None = None,
        after_epoch: Callable[[PublishedTraining], None] | None = None,
    ) -> None:
        self.sampler, self.recipe, self.folder, self.options = sampler, sampler.recipe, folder, options
        self.workers = workers or Workers()
        self.device = self.workers.device(options.device)
        self._parts, self._images = parts_of_batch(self.recipe.batch, self.workers.count, options.images_at_once)
        self.autocast_type = autocast_type(options.precision, self.device)
        torch.manual_seed(sampler.seed)
        model = KPrism(config)
        if options.sync_batch_norm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.decoder.recompute = options.recompute
        self.model = model.to(self.device).train()
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay, fused=fused
        )
        self.step = 0
        self.steps_per_epoch = self.recipe.steps_per_epoch(sampler.slices)
        self.steps_in_all = self.recipe.steps_in_all(sampler.slices)
        self.seconds, self.waited = 0.0, 0.0
        self.stopped = False
        self._asked_to_stop = False
        self._saved_step = -1
        self._after_epoch = after_epoch
        self._pending = PendingRecords(_FETCH_EVERY if self.device.type == "cuda" else 1)
        folder.mkdir(parents=True, exist_ok=True)
        if has_state(folder):
            self._load()
        self._network = self._joined(PublishedStep(self.model, self.recipe))

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def waiting_share(self) -> float:
        """Share of the time in which this process waited for batches; a GPU waits at most so long for them."""
        return self.waited / self.seconds if self.seconds else 0.0

    def steps(self) -> Generator[dict[str, float]]:
        """Train to the end, or until SIGTERM asks to stop; yields the record of each step, which is in the log already.

        The state is saved every few minutes and at the end. After SIGTERM `stopped` is true.
        """
        saved = time.monotonic()
        with self._stopped_by_signal():
            for records in self._train():
                yield from records
                if time.monotonic() - saved > 60 * self.options.save_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def network(self) -> KPrism:
        """A copy of the network in evaluation mode, with the mean of the processes' batch-norm statistics.

        All processes must call it.
        """
        model = KPrism(self.model.config)
        model.load_state_dict(self.model.state_dict())
        model = model.to(self.device).eval()
        self.workers.average_values([value for value in model.buffers() if value.is_floating_point()])
        return model

    def save(self) -> None:
        """Write the state; the first process does it, and only if steps were made since the last time."""
        if self._saved_step == self.step or self.workers.rank:
            return
        parts = {"model": self.model.state_dict(), "average": {}, "adam": optimizer_moments(self.optimizer)}
        save_state(self.folder, self.step, parts, {"seconds": self.seconds, "waited": self.waited, **self._identity()})
        self._saved_step = self.step

    def batches(self, step: int) -> list[RawBatch]:
        """The parts of a step that fall to this process."""
        return [self._draw(step * self._parts + part) for part in range(self._parts)]

    def gradients(self, batches: Iterable[RawBatch]) -> Tensor:
        """Leave the gradients of a step in the parameters; returns its loss and Dice (3,) in this process."""
        self.optimizer.zero_grad()
        values = torch.zeros(3, device=self.device)
        for part, raw in enumerate(batches):
            values += self._backward(raw, part)
        return values

    def _train(self) -> Iterator[list[dict[str, float]]]:
        """The records of steps as they become known; the state may be saved whenever some are yielded."""
        if self.step == self.steps_in_all:
            return
        pin, start = self.device.type == "cuda", self.step * self._parts
        with prefetched(self._draw, start=start, processes=self.options.loaders, pin=pin) as batches:
            while self.step < self.steps_in_all and not self.stopped:
                begin = time.monotonic()
                record = self._train_step(batches)
                ends_epoch = self.step % self.steps_per_epoch == 0
                records = self._agreed(self._pending.add(record) or (self._pending.take() if ends_epoch else []))
                self.seconds += time.monotonic() - begin
                if records:
                    yield records
                if ends_epoch and self._after_epoch is not None:
                    self._after_epoch(self)

    def _train_step(self, batches: Iterator[RawBatch]) -> dict[str, float | Tensor]:
        rate = self.recipe.rate_at(self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        values = self.gradients(self._waited_for(batches))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        step_if_finite(self.optimizer, norm)
        mode, (loss, first, last) = self.sampler.mode(self.step), values
        record = {"step": self.step, "rate": rate, "loss": loss, mode: first, f"{mode}_last": last}
        self.step += 1
        return record

    def _waited_for(self, batches: Iterator[RawBatch]) -> Iterator[RawBatch]:
        """The next parts of a step; the time until they are there is counted."""
        for _ in range(self._parts):
            begin = time.monotonic()
            raw = next(batches)
            self.waited += time.monotonic() - begin
            yield raw

    def _backward(self, raw: RawBatch, part: int) -> Tensor:
        """Add the gradients of one part of a step; returns its share of the step's loss and Dice (3,)."""
        batch: StepBatch = raw.augmented(self.device)
        network, last = self._network, part + 1 == self._parts
        alone = network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
        kind = self.autocast_type
        with alone:  # the forward pass belongs to it, too
            with torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None):
                loss, dice = network(batch)
            (loss / self._parts).backward()
        return torch.cat([loss.detach()[None], dice]).float() / self._parts

    def _draw(self, number: int) -> RawBatch:
        """The `number`-th part that this process is trained on, counted from the start of the training."""
        step, part = divmod(number, self._parts)
        first = (part * self.workers.count + self.workers.rank) * self._images
        return self.sampler.batch(step, range(first, first + self._images))

    def _agreed(self, records: list[dict[str, float]]) -> list[dict[str, float]]:
        """Records with the means over all processes, which also agree to stop; the first process writes the log."""
        if not records:
            return []
        own = [value for record in records for value in record.values()]
        values = torch.tensor([*own, float(self._asked_to_stop)], dtype=torch.float64, device=self.device)
        self.workers.average_values([values])
        *means, stop = values.tolist()
        self.stopped = stop > 0
        mean = iter(means)
        agreed = [{name: next(mean) for name in record} for record in records]
        for known, record in zip(agreed, records, strict=True):
            known["step"], known["rate"] = record["step"], record["rate"]  # the same in all processes, not rounded
        if self.workers.rank == 0:
            for record in agreed:
                append_record(self.folder, record)
        return agreed

    def _joined(self, step: PublishedStep) -> nn.Module:
        """The step whose gradients are those of all processes."""
        if self.workers.count == 1:
            return step
        return DistributedDataParallel(
            step,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=True,  # each mode leaves some unused
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,
        )

    @contextmanager
    def _stopped_by_signal(self) -> Iterator[None]:
        """Let SIGTERM end the training after a step; torchrun hands it on to all processes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            self._asked_to_stop = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _load(self) -> None:
        content, parts = load_state(self.folder, self._identity())
        self.model.load_state_dict(parts["model"])
        restore_moments(self.optimizer, parts["adam"])
        self.step, self.seconds, self.waited = content["step"], content["seconds"], content["waited"]
        self._saved_step = self.step
        if self.workers.rank == 0:
            truncate_log(self.folder, self.step)

    def _identity(self) -> Mapping[str, Any]:
        """What must not change when a run is resumed: network, classes, seed, recipe, and what is drawn from."""
        return {
            "config": self.model.config.to_dict(),
            "classes": self.sampler.registry.to_list(),
            "seed": self.sampler.seed,
            "recipe": asdict(self.recipe),
            "shares": self.sampler.shares(),
            "data": self.sampler.contents(),
            "slices": self.sampler.slices,
        }
