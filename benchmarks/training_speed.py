# SPDX-License-Identifier: Apache-2.0
"""Time training steps: samples a second, and what of a step is data, click search and network.

    python -m benchmarks.training_speed --data FOLDER... --store FOLDER [--preset small] [--size 128] [--batch-size 8]
        [--precision auto] [--threads 2]

A sample is one prompted mask that is learned from: a semantic, an in-context or an interactive one, corrections
included; "images" counts the encoder's work. Data are made as in training, in a thread beside the network, and timed
alone, too. Ratios are of one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from kprism_model.data.building import build_store
from kprism_model.data.prefetch import Prefetcher
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.interaction import simulated_user
from kprism_model.interaction.clicks import next_clicks
from kprism_model.losses import mask_loss
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training import training_step as training_step_module
from kprism_model.training.plan import autocast_type
from kprism_model.training.schedule import StepSettings
from kprism_model.training.training_step import training_step


class Stopwatch:
    """Adds up the time spent in a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*arguments, **named)
        self.seconds += time.perf_counter() - start
        return result


class Counted:
    """A loss that counts the masks that it is asked about."""

    def __init__(self, loss: Callable[..., torch.Tensor]) -> None:
        self.loss, self.masks = loss, 0

    def __call__(self, logits: Any, target: torch.Tensor, **named: Any) -> torch.Tensor:
        self.masks += len(target)
        return self.loss(logits, target, **named)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--store", type=Path, required=True, help="folder for the slices, made if it is not there")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    store = build_store(arguments.data, arguments.store, split="training", size=256)
    sampler = Sampler(store, seed=0, mixture=Mixture(regions=0.0))
    model = KPrism(KPrismConfig.preset(arguments.preset, num_classes=len(sampler.registry))).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    kind = autocast_type(arguments.precision, torch.device("cpu"))

    def draw(step: int) -> Any:
        return sampler.batch(arguments.batch_size, step=step, size=arguments.size)

    def train_on(step: int, batch: Any) -> None:
        with torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None):
            loss, _ = training_step(model, batch, np.random.default_rng(step), StepSettings())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    steps = arguments.steps
    data = Stopwatch(draw)
    for step in range(steps):
        train_on(step, data(step))  # to warm up: shapes that are met for the first time cost more
    clicks, scribbles = Stopwatch(next_clicks), Stopwatch(simulated_user.simulate_scribbles)
    learned = Counted(mask_loss)
    with (
        patch.multiple(simulated_user, next_clicks=clicks, simulate_scribbles=scribbles),
        patch.object(training_step_module, "mask_loss", learned),
        Prefetcher(draw, start=0) as batches,
    ):
        start = time.perf_counter()
        for step in range(steps):
            train_on(step, next(batches))
        total = time.perf_counter() - start
    size = f"{arguments.size} px, batch {arguments.batch_size}"
    print(f"{arguments.preset}, {size}, {arguments.threads} threads, {kind or torch.float32}")
    print(f"step                {total / steps:8.3f} s")
    print(f"samples a second    {learned.masks / total:8.1f}   ({learned.masks / steps:.1f} a step)")
    print(f"images a second     {steps * arguments.batch_size / total:8.1f}")
    print(
        f"data, made alone    {data.seconds / steps:8.3f} s  {100 * data.seconds / total:5.1f} % of a step, beside it"
    )
    search = clicks.seconds + scribbles.seconds
    print(f"click search        {search / steps:8.3f} s  {100 * search / total:5.1f} % of a step")


if __name__ == "__main__":
    main()
