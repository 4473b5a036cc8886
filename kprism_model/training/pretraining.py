# SPDX-License-Identifier: Apache-2.0
"""The command `train`: from MSD-style folders, or a pack, to a checkpoint with its provenance."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from kprism_model.checkpoint import Checkpoint, checkpoint_stem, load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.pack import read_pack
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.sequence_sampling import SequenceMixture, SequenceSampler
from kprism_model.data.slices import SliceStore
from kprism_model.named_values import named_values
from kprism_model.network.config import KPrismConfig
from kprism_model.network.efficientnet import read_imagenet
from kprism_model.training.distributed import Workers
from kprism_model.training.heads import fit_heads
from kprism_model.training.kinds import config_with_kinds, with_kinds
from kprism_model.training.loop import fit
from kprism_model.training.pretraining_options import add_arguments, network_config, training_plan
from kprism_model.training.provenance import command_line, folder_provenance, set_provenance
from kprism_model.training.slice_validation import split_validation
from kprism_model.training.snapshots import SnapshotWriter, check_size
from kprism_model.training.trainer import Trainer
from kprism_model.training.weights import average_weights

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Train as the options say; a run that was stopped is resumed by the same command.

    Under `torchrun` each process trains on its own batches, and the first one writes.
    """
    weights = named_values("--weight", arguments.weight)
    checkpoint_stem(arguments.out)  # a bad name is reported before the hours of training
    initial = load_checkpoint(arguments.initial) if arguments.initial else None
    imagenet = read_imagenet(arguments.imagenet) if arguments.imagenet else None
    workers = Workers.join(arguments.device)
    if arguments.keep and workers.count > 1:
        raise ValueError(f"--keep is for a training of one process, got {workers.count}")
    config = network_config(arguments, initial)
    store, validation = _stores(arguments, config.native_size, workers)
    sampler = _sampler(arguments, store, weights, workers.device(arguments.device))
    sequences = _sequences(arguments, store, weights)
    config = replace(config_with_kinds(config, store.sets), num_classes=len(sampler.registry))
    if arguments.mix != 1:
        _check_mix(arguments.mix, initial, config, sampler.registry)
    provenance = _provenances(arguments, store, weights)
    describe = partial(_metadata, arguments, provenance, initial)
    snapshots = None if arguments.keep is None else SnapshotWriter(arguments.keep, validation, describe)
    trainer = Trainer(
        config,
        sampler,
        training_plan(arguments, config.native_size),
        arguments.run_folder,
        device=arguments.device,
        sequences=sequences,
        processes=arguments.loaders,
        workers=workers,
        initial=initial,
        imagenet=imagenet,
        after_save=snapshots,
    )
    if snapshots is not None:
        check_size(trainer.model)  # a network that is too large is reported before the training
    model = fit(trainer)
    if initial is not None and arguments.mix != 1:
        anchor = with_kinds(initial.model.to(arguments.device), initial.registry, store)  # fitted below
        networks = [(model, sampler.registry), (anchor, initial.registry)]
        model, _ = average_weights(networks, [arguments.mix, 1 - arguments.mix])
    if workers.rank == 0:
        metadata = describe(trainer)
        metadata["training"] |= fit_heads(model, sampler, sequences, store, arguments.seed)
        if snapshots is not None:
            snapshots.write(trainer, model, metadata)
        save_checkpoint(arguments.out, model.cpu(), sampler.registry, metadata=metadata, dtype="float16")
        print(f"wrote {arguments.out}.safetensors and {arguments.out}.json after {trainer.step} steps")
    workers.leave()
    return 0


def _sampler(
    arguments: argparse.Namespace, store: SliceStore, weights: Mapping[str, float], device: torch.device
) -> Sampler:
    mixture = Mixture(
        synthetic=arguments.synthetic,
        regions=arguments.regions,
        elsewhere=0.0 if arguments.only_own_absent else Mixture.elsewhere,
    )
    on_gpu = device if device.type == "cuda" and not arguments.loaders else None
    return Sampler(store, seed=arguments.seed, dataset_weights=weights, mixture=mixture, device=on_gpu)


def _sequences(
    arguments: argparse.Namespace, store: SliceStore, weights: Mapping[str, float]
) -> SequenceSampler | None:
    if not arguments.sequences:
        return None
    mixture = SequenceMixture(pseudo=arguments.pseudo)
    return SequenceSampler(store, seed=arguments.seed, dataset_weights=weights, mixture=mixture)


def _check_mix(share: float, initial: Checkpoint | None, config: KPrismConfig, registry: ClassRegistry) -> None:
    """ValueError if weights cannot be averaged; checked before the hours of training."""
    if not 0 <= share <= 1:
        raise ValueError(f"--mix must lie in [0, 1], got {share}")
    same = initial is not None and _apart_from_kinds(initial.model.config) == _apart_from_kinds(config)
    if initial is None or not same or initial.registry.names != registry.names:
        raise ValueError("--mix averages with --initial, which must be the same network with the same classes")


def _apart_from_kinds(config: KPrismConfig) -> KPrismConfig:
    return replace(config, kinds=(), kind_centres=())


def _stores(arguments: argparse.Namespace, native: int, workers: Workers) -> tuple[SliceStore, SliceStore | None]:
    """The slices to train on, and with --keep those to measure Dice on."""
    if arguments.pack is not None:
        store = read_pack(arguments.pack, progress=workers.rank == 0)
        if store.size < native:
            raise ValueError(f"{arguments.pack} holds slices of {store.size} pixels, the network works at {native}")
    else:
        store = _build(arguments, max(256, native), workers)
    if arguments.validation_pack is not None:
        return store, read_pack(arguments.validation_pack)
    return split_validation(store) if arguments.keep is not None else (store, None)


def _build(arguments: argparse.Namespace, size: int, workers: Workers) -> SliceStore:
    """The slices of the training lists; the first process builds the store, the others open it."""
    path = arguments.run_folder / "slices"
    if workers.rank == 0:
        # It reads image files with nibabel, which a machine that trains from a pack may lack.
        from kprism_model.data.building import build_store

        store = build_store(arguments.data, path, split="training", size=size)
    workers.wait()
    return store if workers.rank == 0 else SliceStore.open(path)


def _metadata(
    arguments: argparse.Namespace, provenance: list[dict[str, Any]], initial: Checkpoint | None, trainer: Trainer
) -> dict[str, Any]:
    """What the checkpoint says about its training."""
    plan = trainer.plan
    images = trainer.step * plan.batch_size * plan.accumulate * trainer.workers.count
    start = {} if initial is None else {"initial": {"weights_version": initial.weights_version, **initial.metadata}}
    return {
        "name": arguments.out.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": {
            "command": command_line(),
            "hours": round(trainer.seconds / 3600, 3),
            "steps": trainer.step,
            "images": images,
            "sizes": [list(pair) for pair in plan.sizes],
            "seed": plan.seed,
            "device": arguments.device,
            "processes": trainer.workers.count,
            "torch": torch.__version__,
            "datasets": provenance,
            **start,
        },
    }


def _provenances(
    arguments: argparse.Namespace, store: SliceStore, weights: Mapping[str, float]
) -> list[dict[str, Any]]:
    """For each data set, what the licence of the weights depends on."""
    if arguments.pack is None:
        return [folder_provenance(folder, weights) for folder in arguments.data]
    return [set_provenance(part, weights) for part in store.sets]
