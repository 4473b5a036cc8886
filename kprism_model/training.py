# SPDX-License-Identifier: Apache-2.0
"""Joint training of the three modes, within a budget of minutes, resumable from a kill at any moment."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from kprism_model.config import KPrismConfig
from kprism_model.network import KPrism
from kprism_model.prefetch import Prefetcher
from kprism_model.rounds import RoundSettings, practise
from kprism_model.sampling import MODES, Batch, Mode, Sampler

STATE_NAME = "state"


@dataclass(frozen=True)
class TrainingPlan:
    """What to train with and for how long.

    `minutes` is the budget over all resumptions; learning rate and image size follow the share of it that is spent.
    `sizes` are (share of the budget from which it holds, side in pixels). `mode_weights` are the chances of a batch
    being semantic, in-context and interactive.
    """

    minutes: float = 90.0
    batch_size: int = 8
    sizes: tuple[tuple[float, int], ...] = ((0.0, 128), (0.65, 192))
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warmup_steps: int = 150
    final_rate: float = 0.02
    clip_norm: float = 3.0
    ema_decay: float = 0.998
    mode_weights: tuple[float, float, float] = (0.35, 0.35, 0.3)
    max_references: int = 2
    seed: int = 0
    rounds: RoundSettings = field(default_factory=RoundSettings)
    save_minutes: float = 3.0

    def size_at(self, share: float) -> int:
        """Side in pixels of the training images once `share` of the budget is spent."""
        return next(size for start, size in reversed(self.sizes) if share >= start)

    def rate_at(self, step: int, share: float) -> float:
        """Learning rate: linear warm-up, then a cosine down to `final_rate` of the peak."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        cosine = self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
        return self.learning_rate * warm * cosine


class MovingAverage:
    """Exponential moving average of a model's floating-point state, batch-norm statistics included."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's present state; the first steps move faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average = self.state[name]
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)


class Trainer:
    """Trains one network on one sampler; everything that a resumption needs lies in `folder`."""

    def __init__(
        self, config: KPrismConfig, sampler: Sampler, plan: TrainingPlan, folder: Path, *, device: str = "cpu"
    ) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.sampler, self.folder, self.device = plan, sampler, folder, torch.device(device)
        self.model = KPrism(config).to(self.device)
        self.average = MovingAverage(self.model, plan.ema_decay)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, plan.weight_decay), lr=plan.learning_rate)
        self.step = 0
        self.seconds = 0.0
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
        saved = time.monotonic()
        with tqdm(total=round(60 * self.plan.minutes), unit="s", disable=not progress, mininterval=10) as bar:
            bar.update(round(self.seconds))
            for seconds in self._steps():
                self.seconds += seconds
                bar.set_postfix_str(self._summary(), refresh=False)
                bar.update(min(round(self.seconds), bar.total) - bar.n)
                if time.monotonic() - saved > 60 * self.plan.save_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()
        return self.averaged()

    def averaged(self) -> KPrism:
        """A copy of the network with the averaged weights, in evaluation mode."""
        model = KPrism(self.model.config)
        model.load_state_dict(self.average.state)
        return model.to(self.device).eval()

    def _steps(self) -> Iterator[float]:
        """Train step by step while there is budget; yields the seconds that each took."""
        self.model.train()
        while self.share < 1:
            size = self.plan.size_at(self.share)
            with Prefetcher(lambda step, size=size: self._draw(step, size), start=self.step) as batches:  # type: ignore[misc]
                while self.share < 1 and self.plan.size_at(self.share) == size:
                    start = time.monotonic()
                    self._train_on(next(batches))
                    yield time.monotonic() - start

    def _draw(self, step: int, size: int) -> Batch:
        rng = np.random.default_rng([self.plan.seed, 1, step])
        mode: Mode = MODES[rng.choice(len(MODES), p=self.plan.mode_weights)]
        references = int(rng.integers(1, self.plan.max_references + 1))
        return self.sampler.batch(mode, self.plan.batch_size, step=step, size=size, references=references)

    def _train_on(self, batch: Batch) -> None:
        rate = self.plan.rate_at(self.step, self.share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([self.plan.seed, 2, self.step])
        loss, scores = practise(self.model, _to(batch, self.device), rng, self.plan.rounds)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        if torch.isfinite(norm):  # a step with a broken gradient is skipped, not taken
            self.optimizer.step()
        self.average.update(self.model, self.step)
        self._log(batch, float(loss.detach()), scores, rate)
        self.step += 1

    def _log(self, batch: Batch, loss: float, scores: Mapping[str, float], rate: float) -> None:
        self.recent.setdefault(batch.mode, deque(maxlen=50)).append(scores["first"])
        size = batch.images.shape[-1]
        record = {"step": self.step, "mode": batch.mode, "size": size, "loss": loss, "rate": rate, **scores}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in record.items()}) + "\n")

    def _summary(self) -> str:
        means = (f"{mode} {np.nanmean(values):.3f}" for mode, values in sorted(self.recent.items()))
        return f"step {self.step}  first-mask Dice: " + "  ".join(means)

    def save(self) -> None:
        """Write the state beside the old one and rename it into place: tensors first, then the JSON that names them."""
        if self._saved_step == self.step:
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
        content = {"step": self.step, "seconds": self.seconds, "tensors": tensors_name}
        beside = self.folder / f".{STATE_NAME}.json"
        beside.write_text(json.dumps({**content, **self._identity()}))
        beside.replace(self.folder / f"{STATE_NAME}.json")
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
        for name, value in parts["adam"].items():
            number, _, moment = name.partition(".")
            state["state"].setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict(state)
        self.step, self.seconds = content["step"], content["seconds"]
        self._saved_step = self.step

    def _identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run: the network, what its class rows mean, the seed."""
        classes = self.sampler.registry.to_list()
        return {"config": self.model.config.to_dict(), "classes": classes, "seed": self.plan.seed}


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases, norms and embeddings do not."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and name.rpartition(".")[2].startswith(
            ("weight", "in_weight", "in_proj_weight", "out_weight")
        )
        (decayed if is_matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return Batch(**{**vars(batch), **moved})
