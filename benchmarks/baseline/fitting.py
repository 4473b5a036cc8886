# SPDX-License-Identifier: Apache-2.0
"""Training a baseline within minutes of wall-clock time, by the schedule that K-Prism's own training follows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from kprism_model.data.prefetch import Prefetcher
from kprism_model.files import write_bytes
from kprism_model.training.optimization import MovingAverage
from kprism_model.training.plan import TrainingPlan

B = TypeVar("B")


@dataclass(frozen=True)
class Fit:
    """A trained network with the number of its steps."""

    network: nn.Module
    steps: int


def fit(
    name: str,
    network: nn.Module,
    draw: Callable[[int], B],
    loss_of: Callable[[nn.Module, B, np.random.Generator], Tensor],
    *,
    plan: TrainingPlan,
    folder: Path,
    key: dict[str, Any],
    pretrained: Sequence[nn.Parameter] = (),
    progress: bool = True,
) -> Fit:
    """Train `network` for `plan.minutes` and keep it in `folder`; one that is kept there under the same `key` is read.

    `draw(step)` gives the batch of a step, `loss_of` its loss. Optimiser, learning rate, clipping and averaging of the
    weights are those of `plan`, as K-Prism is trained; `pretrained` parameters have its `trunk_rate`. Returns the
    averaged network in evaluation mode.
    """
    path = folder / f"{name}.safetensors"
    stamp = hashlib.sha256(json.dumps([name, key], sort_keys=True).encode()).hexdigest()
    steps = _kept_steps(path, stamp)
    if steps is None:
        steps = _train(name, network, draw, loss_of, plan, pretrained, progress)
        _keep(path, network, {"key": stamp, "steps": steps, "minutes": plan.minutes, **key})
    else:
        network.load_state_dict(load_file(path))
    return Fit(network.eval(), steps)


def _train(
    name: str,
    network: nn.Module,
    draw: Callable[[int], B],
    loss_of: Callable[[nn.Module, B, np.random.Generator], Tensor],
    plan: TrainingPlan,
    pretrained: Sequence[nn.Parameter],
    progress: bool,
) -> int:
    """Train in place until the budget is spent; leaves the averaged weights in `network`."""
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = MovingAverage(network, plan.ema_decay)
    groups = _parameter_groups(network, pretrained, plan.trunk_rate)
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    budget, start, step = 60 * plan.minutes, time.monotonic(), 0
    with Prefetcher(draw) as batches, tqdm(total=round(budget), unit="s", desc=name, disable=not progress) as bar:
        while (spent := time.monotonic() - start) < budget or not step:
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * plan.rate_at(step, spent / budget)
            loss = loss_of(network, next(batches), np.random.default_rng([plan.seed, step]))
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), plan.clip_norm)
            if torch.isfinite(norm):
                optimizer.step()
            average.update(network, step)
            step += 1
            bar.set_postfix_str(f"step {step} loss {float(loss.detach()):.3f}", refresh=False)
            bar.update(min(round(spent), bar.total) - bar.n)
    network.load_state_dict(average.state)
    return step


def _parameter_groups(
    network: nn.Module, pretrained: Sequence[nn.Parameter], trunk_rate: float
) -> list[dict[str, Any]]:
    """All parameters; "rate" is a group's learning rate relative to that of the plan."""
    trunk = {id(parameter) for parameter in pretrained}
    others = [parameter for parameter in network.parameters() if id(parameter) not in trunk]
    groups = [{"params": others, "rate": 1.0}, {"params": list(pretrained), "rate": trunk_rate}]
    return [group for group in groups if group["params"]]


def _kept_steps(path: Path, stamp: str) -> int | None:
    """The number of steps of a kept network, None where there is none of this key."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(content["steps"]) if content.get("key") == stamp and path.is_file() else None


def _keep(path: Path, network: nn.Module, content: dict[str, Any]) -> None:
    """Write the weights, then the JSON that stands for them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    beside = path.with_name(f".{path.name}")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, beside)
    beside.replace(path)
    write_bytes(path.with_suffix(".json"), json.dumps(content, indent=1).encode())
