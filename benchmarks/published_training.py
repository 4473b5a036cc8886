# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of the published training, on noise: on a CPU beside the other training, on a GPU alone.

    python -m benchmarks.published_training --out FILE.json [--device cpu|cuda] [--loaders N] [--seconds 150]
        [--preset small] [--size 128] [--batch 4]

On a CPU the two loops take turns with the same network, image size and batch, so that load falls on both. A mask is one
that is learned from: one for each image and iteration. On a GPU `small` and `base` are trained at 512 pixels, in
bfloat16, 16 images in a step; where they do not fit in one pass, in several. "waiting" is the share of the time in
which the process waits for batches: a GPU waits at most so long for them. It needs torch, numpy, scipy, safetensors and
Pillow alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.losses import mask_loss
from kprism_model.published.training.noise import NOISE, noise_store
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.published.training.run import PublishedTraining, RunOptions
from kprism_model.published.training.sampling import PublishedSampler
from kprism_model.training import training_step
from kprism_model.training.plan import TrainingPlan
from kprism_model.training.trainer import Trainer

CASES, SLICES = 8, 12
_STEPS_TOGETHER = 10  # a GPU training fetches the values of so many steps at once


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--loaders", type=int, default=8 if torch.cuda.is_available() else 0)
    parser.add_argument("--seconds", type=float, default=150.0, help="in all, without the last steps")
    parser.add_argument("--preset", default="small", help="on a CPU")
    parser.add_argument("--size", type=int, default=128, help="on a CPU")
    parser.add_argument("--batch", type=int, default=4, help="on a CPU")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    return parser.parse_args()


def make_training(folder: Path, store: SliceStore, recipe: PublishedRecipe, options: RunOptions) -> PublishedTraining:
    """A training that has not begun."""
    sampler = PublishedSampler(store, recipe, {NOISE: 1.0}, seed=0)
    return PublishedTraining(recipe.network(num_classes=2), sampler, folder, options)


def timed(steps: Iterator[Any], count: int) -> float:
    """Seconds of `count` steps."""
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    return time.perf_counter() - start


def compare_on_cpu(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both loops by turns, until the time is over."""
    torch.set_num_threads(arguments.threads)
    store = noise_store(folder, arguments.size, cases=CASES, slices=SLICES)
    recipe = PublishedRecipe(preset=arguments.preset, size=arguments.size, batch=arguments.batch, epochs=10**6)
    published = make_training(folder / "new", store, recipe, RunOptions(loaders=arguments.loaders, save_minutes=1e9))
    plan = TrainingPlan(minutes=1e9, batch_size=arguments.batch, sizes=((0.0, arguments.size),), save_minutes=1e9)
    sampler = Sampler(store, seed=0, mixture=Mixture(regions=0.0))
    config = replace(recipe.network(), num_classes=len(sampler.registry))
    before = Trainer(config, sampler, plan, folder / "old", processes=arguments.loaders)
    masks = 0

    def counted(logits: Any, target: torch.Tensor, **named: Any) -> torch.Tensor:
        nonlocal masks
        masks += len(target)
        return mask_loss(logits, target, **named)

    seconds, steps = {"published": 0.0, "before": 0.0}, 0
    runs = {"published": published.steps(), "before": before.steps()}
    with patch.object(training_step, "mask_loss", counted):
        for run in runs.values():
            timed(run, 2)  # to warm up
        masks, begin, waited, spent = 0, time.monotonic(), published.waited, published.seconds
        while not steps or time.monotonic() - begin < arguments.seconds:
            for name, run in runs.items():
                seconds[name] += timed(run, 1)
            steps += 1
    learned = {"published": steps * arguments.batch * recipe.iterations, "before": masks}
    share = (published.waited - waited) / (published.seconds - spent)
    return {
        "device": "cpu",
        "network": arguments.preset,
        "size": arguments.size,
        "batch": arguments.batch,
        "steps of each": steps,
        "masks a second": {name: round(learned[name] / seconds[name], 2) for name in seconds},
        "images a second": {name: round(steps * arguments.batch / seconds[name], 2) for name in seconds},
        "ratio of masks a second": round(
            learned["published"] / seconds["published"] * seconds["before"] / learned["before"], 3
        ),
        "waiting": round(share, 4),
    }


def measure_on_gpu(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """`small` and `base`, and `base` with activations computed twice; each as many images at once as fit."""
    store = noise_store(folder, PublishedRecipe.size, cases=CASES, slices=SLICES)
    end = time.monotonic() + arguments.seconds
    kinds = [("small", False), ("base", False), ("base", True)]
    rows: list[dict[str, Any]] = []
    for number, (preset, recompute) in enumerate(kinds):
        stop = time.monotonic() + (end - time.monotonic()) / (len(kinds) - number)
        for images in (16, 8, 4, 2, 1):
            options = RunOptions(
                device=arguments.device,
                precision="bfloat16",
                loaders=arguments.loaders,
                images_at_once=images,
                recompute=recompute,
                save_minutes=1e9,
            )
            try:
                place = folder / f"{preset}-{recompute}-{images}"
                row = _measured(make_training(place, store, PublishedRecipe(preset=preset), options), stop)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            rows.append({"network": preset, "images at once": images, "activations twice": recompute, **row})
            print(rows[-1], flush=True)
            break
    return rows


def _measured(training: PublishedTraining, stop: float) -> dict[str, Any]:
    """Warm up for some steps, then as many as the time allows, at least as many again."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(training.device)
    run = training.steps()
    timed(run, _STEPS_TOGETHER)
    waited, spent, seconds, steps = training.waited, training.seconds, 0.0, 0
    while not steps or time.monotonic() < stop:
        seconds += timed(run, _STEPS_TOGETHER)
        steps += _STEPS_TOGETHER
    run.close()
    return {
        "steps": steps,
        "seconds a step": round(seconds / steps, 4),
        "images a second": round(steps * training.recipe.batch / seconds, 2),
        "masks a second": round(steps * training.recipe.batch * training.recipe.iterations / seconds, 2),
        "peak memory (GB)": round(torch.cuda.max_memory_allocated(training.device) / 1e9, 2),
        "waiting": round((training.waited - waited) / (training.seconds - spent), 4),
    }


def main() -> None:
    """Measure, print, and write."""
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        on_gpu = arguments.device.startswith("cuda")
        found: Any = measure_on_gpu(arguments, Path(folder)) if on_gpu else compare_on_cpu(arguments, Path(folder))
        device = torch.cuda.get_device_name() if on_gpu else "cpu"
    text = json.dumps({"device": device, "torch": torch.__version__, "results": found}, indent=2)
    arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
