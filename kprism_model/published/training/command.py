# SPDX-License-Identifier: Apache-2.0
"""The command `train --recipe published`: from MSD-style folders to the network of the paper, trained as in the paper.

`python -m kprism_model train ...` trains in one process. `torchrun --nproc-per-node 8 -m kprism_model train ...` trains
in 8, which share the batch of 16. A training that was stopped or killed goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kprism_model.checkpoint import checkpoint_stem, save_checkpoint
from kprism_model.data.building import build_store, select
from kprism_model.data.case_slices import Selection
from kprism_model.data.datasets import read_dataset
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.files import write_bytes
from kprism_model.named_values import named_values
from kprism_model.network.kprism import KPrism
from kprism_model.published.training.curves import MlflowTracker, check_mlflow, watch
from kprism_model.published.training.plan import Plan
from kprism_model.published.training.planning import plan_training, used_structures
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.published.training.run import PublishedTraining, RunOptions, parts_of_batch
from kprism_model.published.training.sampling import PublishedSampler, sampling_weights
from kprism_model.training.distributed import Workers
from kprism_model.training.heads import fit_heads
from kprism_model.training.kinds import config_with_kinds
from kprism_model.training.provenance import command_line, folder_provenance
from kprism_model.training.run_state import check_state, has_state

PLAN_NAME = "plan.json"
"""File in the folder of a run with its plan."""

TERMINATED = 143
"""Exit status after SIGTERM, as shells count it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `train --recipe published`."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, nargs="+", required=True, help="folders with a dataset.json, from `prepare`")
    data.add_argument(
        "--weight", nargs="*", default=[], metavar="NAME=W", help="weight of a set's slices; default: the published one"
    )
    recipe = parser.add_argument_group("recipe (the defaults are the published values)")
    recipe.add_argument("--preset", default=PublishedRecipe.preset, help="network: base, small or tiny")
    recipe.add_argument("--size", type=int, default=PublishedRecipe.size, help="long side of the images in pixels")
    recipe.add_argument("--batch", type=int, default=PublishedRecipe.batch, help="images in a step, of all processes")
    recipe.add_argument(
        "--epochs", type=int, default=PublishedRecipe.epochs, help="passes over as many images as exist"
    )
    recipe.add_argument(
        "--iterations", type=int, default=PublishedRecipe.iterations, help="masks in a step, with clicks"
    )
    recipe.add_argument("--seed", type=int, default=0, help="of the initial weights and of all that is drawn")
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to train; default: a GPU if there is one",
    )
    machine.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    machine.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="processes that store the slices before the training (default: %(default)s)",
    )
    machine.add_argument("--loaders", type=int, default=0, help="processes that make batches; default: one thread")
    machine.add_argument(
        "--images-at-once",
        type=int,
        help="images in a pass of one process; fewer take less memory; default: all of them",
    )
    machine.add_argument(
        "--checkpoint-activations", action="store_true", help="compute the decoder's activations twice, and keep none"
    )
    machine.add_argument(
        "--sync-batch-norm", action="store_true", help="normalize by the images of all processes (GPUs only)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="only say what the training will take: steps, hours, memory, disk"
    )
    _add_places(parser.add_argument_group("files"))


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, required=True, help="stem of the checkpoint to write")
    group.add_argument(
        "--run-folder", type=Path, required=True, help="folder of the run: slices, state to resume, log, curves"
    )
    group.add_argument("--save-minutes", type=float, default=RunOptions.save_minutes, help="time between savings")
    group.add_argument(
        "--checkpoint-every",
        type=int,
        default=5,
        metavar="EPOCHS",
        help="checkpoints on the way; 0 for none (default: 5)",
    )
    group.add_argument("--mlflow", default="", metavar="URI", help="log to this MLflow server or database, too")


def run(arguments: argparse.Namespace) -> int:
    """Train as the options say; a run that was stopped is resumed by the same command."""
    # What is wrong is reported before the hours of making slices and the days of training.
    checkpoint_stem(arguments.out)
    check_mlflow(arguments.mlflow)
    recipe, options = _recipe(arguments), _options(arguments)
    names = [read_dataset(folder).name for folder in arguments.data]
    weights = sampling_weights(names, named_values("--weight", arguments.weight))
    workers = Workers.join(arguments.device)
    parts_of_batch(recipe.batch, workers.count, options.images_at_once)
    selections = select(arguments.data, size=recipe.size, structures=used_structures, only_shown=True)
    make_plan = partial(_plan, arguments, selections, recipe, options, weights, workers)
    is_resumed = has_state(arguments.run_folder)
    if is_resumed:  # before the slices of that run are made anew for other options
        _check_resumed(arguments, recipe, selections)
    first = None if is_resumed and not arguments.plan else make_plan()
    if arguments.plan:
        workers.leave()
        return 0
    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # one that cannot be made is told before the training
    store = open_store(arguments, workers)
    if first is not None:
        make_plan(known=first)
    sampler = PublishedSampler(store, recipe, weights, seed=arguments.seed)
    heads = _sampler_for_heads(store, sampler, weights)
    config = config_with_kinds(recipe.network(num_classes=len(sampler.registry)), store.sets)
    describe = partial(_metadata, arguments, weights)
    after_epoch = partial(_write_on_the_way, arguments, describe)
    training = PublishedTraining(
        config, sampler, arguments.run_folder, options, workers=workers, after_epoch=after_epoch
    )
    tracker = None
    if arguments.mlflow and workers.rank == 0:
        tracker = MlflowTracker(arguments.mlflow, arguments.run_folder, asdict(recipe) | {"weights": weights})
    watch(training, tracker)
    if tracker is not None:
        tracker.end(training.step, finished=not training.stopped)
    if training.stopped:
        if workers.rank == 0:
            print(f"stopped after step {training.step} of {training.steps_in_all}; the same command goes on")
        workers.leave()
        return TERMINATED
    model = training.network()
    if workers.rank == 0:
        metadata = describe(training)
        metadata["training"] |= fit_heads(model, heads, None, store, arguments.seed)
        _write(arguments.out, model, training, metadata)
        print(f"wrote {arguments.out}.safetensors and {arguments.out}.json after {training.step} steps")
    workers.leave()
    return 0


def open_store(arguments: argparse.Namespace, workers: Workers) -> SliceStore:
    """The slices of the training lists at the recipe's size: the first process makes them, the others open them."""
    path = arguments.run_folder / "slices"
    if workers.rank == 0:
        store = build_store(
            arguments.data,
            path,
            size=arguments.size,
            structures=used_structures,
            only_shown=True,
            workers=arguments.workers,
        )
    workers.wait()
    return store if workers.rank == 0 else SliceStore.open(path)


def _plan(
    arguments: argparse.Namespace,
    selections: Sequence[Selection],
    recipe: PublishedRecipe,
    options: RunOptions,
    weights: Mapping[str, float],
    workers: Workers,
    known: Plan | None = None,
) -> Plan:
    """Print and write the plan; ValueError if it cannot fit. What is `known` from an earlier plan is not measured."""
    checkpoints = 1 + (recipe.epochs // arguments.checkpoint_every if arguments.checkpoint_every else 0)
    plan = plan_training(
        selections, arguments.run_folder, recipe, options, weights, workers, checkpoints=checkpoints, known=known
    )
    if workers.rank == 0:
        print(plan, flush=True)
        arguments.run_folder.mkdir(parents=True, exist_ok=True)
        write_bytes(arguments.run_folder / PLAN_NAME, (json.dumps(plan.to_dict(), indent=1) + "\n").encode())
    plan.refuse()
    return plan


def _check_resumed(arguments: argparse.Namespace, recipe: PublishedRecipe, selections: Sequence[Selection]) -> None:
    """ValueError if the folder holds a run with another recipe, seed or list of data sets."""
    content = check_state(arguments.run_folder, {"recipe": asdict(recipe), "seed": arguments.seed})
    stored, wanted = sorted(content.get("shares", {})), sorted(one.name for one in selections)
    if stored != wanted:
        raise ValueError(
            f"{arguments.run_folder} belongs to another run: its data sets are {', '.join(stored)}, "
            f"not {', '.join(wanted)}"
        )


def _recipe(arguments: argparse.Namespace) -> PublishedRecipe:
    return PublishedRecipe(
        preset=arguments.preset,
        size=arguments.size,
        batch=arguments.batch,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
    )


def _options(arguments: argparse.Namespace) -> RunOptions:
    return RunOptions(
        device=arguments.device,
        precision=arguments.precision,
        loaders=arguments.loaders,
        images_at_once=arguments.images_at_once,
        recompute=arguments.checkpoint_activations,
        sync_batch_norm=arguments.sync_batch_norm,
        save_minutes=arguments.save_minutes,
    )


def _sampler_for_heads(store: SliceStore, sampler: PublishedSampler, weights: Mapping[str, float]) -> Sampler:
    """What the presence head is fitted on: images of the sets with what they show and what they lack.

    The published network has no such head; without it the server cannot tell that a structure is not in an image.
    """
    mixture = replace(Mixture(), synthetic=0.0, regions=0.0)
    return Sampler(store, seed=sampler.seed, registry=sampler.registry, dataset_weights=dict(weights), mixture=mixture)


def _write_on_the_way(
    arguments: argparse.Namespace, describe: partial[dict[str, Any]], training: PublishedTraining
) -> None:
    """A checkpoint after some of the epochs but the last; its presence head is not fitted yet."""
    epoch, every = training.epoch, arguments.checkpoint_every
    if not every or epoch % every or epoch == training.recipe.epochs:
        return
    model = training.network()
    if training.workers.rank == 0:
        stem = checkpoint_stem(arguments.out)
        _write(stem.with_name(f"{stem.name}-epoch{epoch}"), model, training, describe(training))


def _write(path: Path, model: KPrism, training: PublishedTraining, metadata: Mapping[str, Any]) -> None:
    save_checkpoint(path, model.cpu(), training.sampler.registry, metadata=metadata)


def _metadata(
    arguments: argparse.Namespace, weights: Mapping[str, float], training: PublishedTraining
) -> dict[str, Any]:
    """What the checkpoint says about its training."""
    return {
        "name": arguments.out.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": {
            "command": command_line(),
            "recipe": asdict(training.recipe),
            "hours": round(training.seconds / 3600, 3),
            "waiting share": round(training.waiting_share, 4),
            "epochs": training.epoch,
            "steps": training.step,
            "images": training.step * training.recipe.batch,
            "slices": training.sampler.slices,
            "seed": training.sampler.seed,
            "device": arguments.device,
            "processes": training.workers.count,
            "torch": torch.__version__,
            "datasets": [folder_provenance(folder, weights) for folder in arguments.data],
        },
    }
