# SPDX-License-Identifier: Apache-2.0
"""The plan of a training from its options: slices and disk from the data sets, hours and memory from measured steps.

The steps are measured on noise, because their cost does not depend on what the images show. So the plan is complete
before the hours in which slices are stored.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kprism_model.data.case_slices import Selection
from kprism_model.data.datasets import Dataset
from kprism_model.data.structures import StructureMap
from kprism_model.network.kprism import KPrism
from kprism_model.published.sets import published_sets
from kprism_model.published.training.measuring import measure
from kprism_model.published.training.noise import NOISE, noise_store
from kprism_model.published.training.plan import Plan, make_plan
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.published.training.run import PublishedTraining, RunOptions, parts_of_batch
from kprism_model.published.training.sampling import PublishedSampler
from kprism_model.training.distributed import Workers

_CASES, _SLICES = 2, 2
_STATE_COPIES = 6  # weights and two moments, of the old state and the new one beside it


def used_structures(dataset: Dataset) -> StructureMap:
    """What the experiment uses of a data set; all of one that it does not have."""
    known = published_sets().get(dataset.name)
    return StructureMap.unchanged(dataset.classes) if known is None else known.structure_map(dataset.classes)


def plan_training(
    selections: Sequence[Selection],
    run_folder: Path,
    recipe: PublishedRecipe,
    options: RunOptions,
    weights: Mapping[str, float],
    workers: Workers,
    *,
    checkpoints: int,
    known: Plan | None = None,
) -> Plan:
    """The plan of a training that writes so many `checkpoints`; all processes must call it.

    Step and network are measured unless an earlier plan is `known`.
    """
    names = {name.casefold() for one in selections for name in one.structures.classes.values()}
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in KPrism(recipe.network(num_classes=len(names))).parameters())
    plan = make_plan(
        selections,
        run_folder / "slices",
        batch=recipe.batch,
        epochs=recipe.epochs,
        weights=weights,
        processes=workers.count,
        other_bytes=4 * parameters * (_STATE_COPIES + checkpoints),
        parameters=parameters,
        device_bytes=_device_bytes(workers.device(options.device)),
        measure=None if known is not None else lambda rounds: _cost(recipe, options, workers, len(names), rounds),
    )
    if known is None:
        return plan
    return replace(plan, seconds=known.seconds, peak_bytes=known.peak_bytes, out_of_memory=known.out_of_memory)


def _cost(
    recipe: PublishedRecipe, options: RunOptions, workers: Workers, classes: int, rounds: int
) -> tuple[float, int | None]:
    """Seconds of a step, and the most bytes of memory in it.

    On a CPU, where a step of the large network takes minutes, it is one image that is measured, and no memory.
    """
    on_gpu = workers.device(options.device).type == "cuda"
    passes, images = parts_of_batch(recipe.batch, workers.count, options.images_at_once if on_gpu else 1)
    small = replace(recipe, batch=images * workers.count)
    quiet = replace(options, images_at_once=None, save_minutes=1e9)
    with tempfile.TemporaryDirectory(prefix="kprism-plan-") as folder:
        sampler = PublishedSampler(
            noise_store(Path(folder), recipe.size, cases=_CASES, slices=_SLICES), small, {NOISE: 1.0}, seed=0
        )
        training = PublishedTraining(
            recipe.network(num_classes=max(classes, len(sampler.registry))),
            sampler,
            Path(folder),
            quiet,
            workers=workers,
        )
        seconds, peak = measure(training, rounds if on_gpu else 1)
    return seconds * passes, peak if on_gpu else None


def _device_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
