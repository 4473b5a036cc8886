# SPDX-License-Identifier: Apache-2.0
"""Joint training of the three modes, within a budget of minutes, resumable from a kill at any moment."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from kprism_model.checkpoint import Checkpoint
from kprism_model.data.batch import Batch
from kprism_model.data.prefetch import Prefetcher
from kprism_model.data.sampling import Sampler
from kprism_model.files import write_bytes
from kprism_model.network.config import SIZE_MULTIPLE, KPrismConfig
from kprism_model.network.efficientnet import load_imagenet
from kprism_model.network.kprism import KPrism
from kprism_model.training.distributed import Workers
from kprism_model.training.optimization import MovingAverage, parameter_groups
from kprism_model.training.step_times import StepTimes
from kprism_model.training.training_step import StepSettings, training_step
from kprism_model.training.unwaited import PendingRecords, Record, step_if_finite
from kprism_model.training.warm_start import warm_start

STATE_NAME = "state"
LOG_NAME = "log.jsonl"

_FETCHED_EVERY = 10  # steps; a GPU's figures are fetched together, so that it seldom has nothing to do

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class TrainingPlan:
    """What to train with and for how long.

    `minutes` is the budget over all resumptions; learning rate and image size follow the share of it that is spent.
    `sizes` are (share of the budget from which it holds, side in pixels). A step takes the mean gradient of
    `accumulate` batches of `batch_size` images in each process. `precision` "auto" is bfloat16 autocast where the
    device computes in it, float32 elsewhere.
    """

    minutes: float = 90.0
    batch_size: int = 8
    accumulate: int = 1
    sizes: tuple[tuple[float, int], ...] = ((0.0, 128), (0.65, 192))
    learning_rate: float = 1e-3
    trunk_rate: float = 0.3
    weight_decay: float = 0.01
    warmup_steps: int = 150
    final_rate: float = 0.02
    clip_norm: float = 3.0
    ema_decay: float = 0.998
    precision: Precision = "auto"
    seed: int = 0
    rounds: StepSettings = field(default_factory=StepSettings)
    save_minutes: float = 3.0

    def size_at(self, share: float) -> int:
        """Side in pixels of the training images once `share` of the budget is spent."""
        return next(size for start, size in reversed(self.sizes) if share >= start)

    def rate_at(self, step: int, share: float) -> float:
        """Learning rate: linear warm-up, then a cosine down to `final_rate` of the peak."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        cosine = self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
        return self.learning_rate * warm * cosine


def coarse_size(native: int) -> int:
    """Side of the first, cheaper part of training: two thirds of the native size, a multiple of 32."""
    return max(SIZE_MULTIPLE, round(2 * native / 3 / SIZE_MULTIPLE) * SIZE_MULTIPLE)


class Trainer:
    """Trains one network on one sampler; everything that a resumption needs lies in `folder`.

    With several `workers` each process trains on its own batches, and the first one alone writes. A run that is not
    resumed starts from the weights of `initial` as far as they fit, and its trunk from the tensors `imagenet`.
    `after_save` is called after the state is saved, every few minutes and at the end; its time counts as training.
    """

    def __init__(
        self,
        config: KPrismConfig,
        sampler: Sampler,
        plan: TrainingPlan,
        folder: Path,
        *,
        device: str = "cpu",
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
        self.average = MovingAverage(self.model, plan.ema_decay)
        groups = parameter_groups(self.model, plan.weight_decay, plan.trunk_rate)
        self.optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, fused=self.device.type in ("cpu", "cuda"))
        self._pending = PendingRecords(_FETCHED_EVERY if self.device.type == "cuda" else 1)
        self.step = 0
        self.seconds = 0.0
        self._times = StepTimes()
        self._saved_step = -1
        self.recent: dict[str, deque[float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / f"{STATE_NAME}.json").exists():
            self._load()

    @property
    def share(self) -> float:
        """Share of the budget that is spent."""
        return self.seconds / (60 * self.plan.minutes)

    def run(self, *, progress: bool = True) -> KPrism:
        """Train until the budget is spent and return the averaged network in evaluation mode."""
        total = round(60 * self.plan.minutes)
        hidden = not progress or self.workers.rank != 0
        with tqdm(total=total, unit="s", disable=hidden, mininterval=10) as bar:
            bar.update(round(self.seconds))
            for _ in self.steps():
                bar.set_postfix_str(self._summary(), refresh=False)
                bar.update(min(round(self.seconds), total) - bar.n)
        return self.averaged()

    def steps(self) -> Iterator[dict[str, float]]:
        """Train while there is budget; yields the record of each step, which is logged already."""
        saved = time.monotonic()
        with SummaryWriter(str(self.folder / "tensorboard")) if not self.workers.rank else nullcontext() as board:
            for record in self._steps():
                self._note(record, board)
                yield record
                if time.monotonic() - saved > 60 * self.plan.save_minutes:
                    self._save_and_tell()
                    saved = time.monotonic()
        self._save_and_tell()

    def _save_and_tell(self) -> None:
        self.save()
        if self._after_save is not None:
            start = time.monotonic()
            self._after_save(self)
            self.seconds += time.monotonic() - start

    def averaged(self) -> KPrism:
        """A copy of the network with the averaged weights, in evaluation mode."""
        model = KPrism(self.model.config)
        model.load_state_dict(self.average.state)
        return model.to(self.device).eval()

    def _steps(self) -> Iterator[dict[str, float]]:
        """Train step by step while there is budget; yields what each step logs."""
        self.model.train()
        self.workers.share_state(self.model)
        spent = 0.0
        while self.share < 1:
            size = self.plan.size_at(self.share)
            first = self.step * self.plan.accumulate
            with Prefetcher(lambda number, size=size: self._draw(number, size), start=first) as batches:  # type: ignore[misc]
                while self.share < 1 and self.plan.size_at(self.share) == size:
                    start = time.monotonic()
                    ready = self._pending.add(self._train_step(batches))
                    spent += time.monotonic() - start
                    if ready:  # only then is the host as far as the device
                        self.seconds += self._times.counted(self.workers.longest(spent, self.device))
                        spent = 0.0
                    yield from ready

    def _draw(self, number: int, size: int) -> Batch:
        """The batch of this process that is the `number`-th of the run."""
        return self.sampler.batch(self.plan.batch_size, step=number * self.workers.count + self.workers.rank, size=size)

    def _train_step(self, batches: Iterator[Batch]) -> Record:
        rate = self.plan.rate_at(self.step, self.share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.zero_grad()
        record: dict[str, float | Tensor] = {"step": self.step, "rate": rate, "loss": 0.0}
        for part in range(self.plan.accumulate):
            batch = next(batches)
            loss, scores = self._practise(batch, part)
            (loss / self.plan.accumulate).backward()
            record["loss"] += loss.detach() / self.plan.accumulate
            record["size"] = batch.images.shape[-1]
            record |= scores
        self.workers.average_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        step_if_finite(self.optimizer, norm)
        self.average.update(self.model, self.step)
        self.step += 1
        return record

    def _practise(self, batch: Batch, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([self.plan.seed, self.step, part])
        with self._autocast():
            return training_step(self.model, batch.to(self.device), rng, self.plan.rounds)

    def _autocast(self) -> torch.autocast:
        """The context in which the network is trained."""
        kind = self.autocast_type
        return torch.autocast(self.device.type, kind or torch.bfloat16, enabled=kind is not None)

    def _note(self, record: Mapping[str, float], board: SummaryWriter | None = None) -> None:
        """Write a step to the log and to TensorBoard, and remember its scores for the progress bar."""
        scores = {name: value for name, value in record.items() if name not in ("step", "rate", "loss", "size")}
        for name, value in scores.items():
            self.recent.setdefault(name, deque(maxlen=50)).append(value)
        if self.workers.rank:
            return
        with (self.folder / LOG_NAME).open("a") as log:
            log.write(json.dumps({name: round(value, 6) for name, value in record.items()}) + "\n")
        if board is not None:
            curves = {name: record[name] for name in ("loss", "rate")} | {f"dice/{n}": v for n, v in scores.items()}
            for name, value in curves.items():
                board.add_scalar(name, value, int(record["step"]))

    def _summary(self) -> str:
        known = ((name, [value for value in values if value == value]) for name, values in sorted(self.recent.items()))
        means = (f"{name} {np.mean(values):.3f}" for name, values in known if values)
        return f"step {self.step}  Dice: " + "  ".join(means)

    def save(self) -> None:
        """Write the state beside the old one and rename it into place: tensors first, then the JSON that names them."""
        if self._saved_step == self.step or self.workers.rank:
            return  # never rewrite a file that the present state names
        tensors: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            tensors[f"model.{name}"] = value
        for name, value in self.average.state.items():
            tensors[f"average.{name}"] = value
        for number, moments in self.optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"adam.{number}.{name}"] = value
        tensors_name = f"{STATE_NAME}-{self.step}.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, self.folder / tensors_name)
        _sync(self.folder / tensors_name)
        content = {"step": self.step, "seconds": self.seconds, "tensors": tensors_name}
        write_bytes(self.folder / f"{STATE_NAME}.json", json.dumps({**content, **self._identity()}).encode())
        self._saved_step = self.step
        for old in self.folder.glob(f"{STATE_NAME}-*.safetensors"):
            if old.name != tensors_name:
                old.unlink()

    def _load(self) -> None:
        path = self.folder / f"{STATE_NAME}.json"
        content: dict[str, Any] = json.loads(path.read_text())
        for key, value in self._identity().items():
            if content.get(key) != value:
                raise ValueError(f"{path} belongs to another run: its {key} is {content.get(key)}, not {value}")
        try:
            tensors = load_file(self.folder / content["tensors"])
        except SafetensorError as error:
            raise ValueError(f"{self.folder / content['tensors']} is damaged: {error}") from error
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "adam": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.model.load_state_dict(parts["model"])
        self.average.state = {name: value.to(self.device) for name, value in parts["average"].items()}
        state = self.optimizer.state_dict()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, value in parts["adam"].items():
            number, _, moment = name.partition(".")
            parameter = parameters[int(number)]
            # The fused optimizer takes moments as they lie in memory: they must lie as their parameter does.
            laid = value if value.shape != parameter.shape else torch.empty_like(parameter).copy_(value)
            state["state"].setdefault(int(number), {})[moment] = laid
        self.optimizer.load_state_dict(state)
        self.step, self.seconds = content["step"], content["seconds"]
        self._saved_step = self.step
        if self.workers.rank == 0:
            self._shorten_log()

    def _shorten_log(self) -> None:
        """Drop the log's lines of steps that came after the saved state: they are made again."""
        path = self.folder / LOG_NAME
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] < self.step]
            write_bytes(path, "".join(f"{line}\n" for line in kept).encode())

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run: the network, what its class rows mean, the seed."""
        classes = self.sampler.registry.to_list()
        return {"config": self.model.config.to_dict(), "classes": classes, "seed": self.plan.seed}


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast type for a device, None for plain float32; ValueError for an unknown precision.

    "auto" takes bfloat16 only where the hardware multiplies in it: CPUs without it emulate it many times slower.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        able = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and able) else None


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, so that no rename can come before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
