# SPDX-License-Identifier: Apache-2.0
"""What specialists of one data set learn from a few labelled cases in a few minutes.

    python -m benchmarks.specialists --data ../shared/data/acdc_mr --cases 30 --minutes 24 --validation 6

Each arm is trained alone on the first cases of the training list: `unet`, MONAI's residual U-Net, and
`pretrained_unet`, an nnU-Net-like U-Net on the image encoder of the shipped weights. Prints the semantic Dice of each
structure on the first cases of the validation list, by the rule of `kprism_model.training.validation`: the Dice of some
slices of a case together, and the mean over cases. Started again with the same arguments it reads what is trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.annotated_cases import annotated
from benchmarks.baseline.fitting import Fit, fit
from benchmarks.baseline.games import (
    LabelBatch,
    SpecialistBatches,
    answer_classes,
    lay_out,
    specialist_loss,
    unet,
)
from benchmarks.baseline.pretrained_unet import PretrainedUNet, deep_supervision_loss
from benchmarks.places import SHIPPED_WEIGHTS
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.datasets import read_dataset
from kprism_model.data.partial import AnnotatedCase, StoreBuilder
from kprism_model.data.slices import SliceSet
from kprism_model.files import write_bytes
from kprism_model.metrics import dice
from kprism_model.network.efficientnet import EfficientNetLiteEncoder
from kprism_model.training.plan import TrainingPlan
from kprism_model.training.validation import ValidationSettings, chosen_slices

ARMS = ("unet", "pretrained_unet")


@dataclass(frozen=True)
class Specialist:
    """How one arm is trained: its network for so many logits, its loss, and which parameters are pretrained."""

    new: Callable[[int], nn.Module]
    loss: Callable[[nn.Module, LabelBatch, np.random.Generator], Tensor]
    pretrained: Callable[[nn.Module], list[nn.Parameter]]


def specialist(arm: str, weights: Path = SHIPPED_WEIGHTS) -> Specialist:
    """An arm by its name; `weights` is the checkpoint that `pretrained_unet` takes its encoder from."""
    if arm == "unet":
        return Specialist(lambda channels: unet(3, channels), specialist_loss, lambda _: [])
    if arm == "pretrained_unet":
        encoder = load_checkpoint(weights).model.image_encoder
        if not isinstance(encoder, EfficientNetLiteEncoder):
            raise ValueError(f"{weights} has a {type(encoder).__name__}; expected an EfficientNet-Lite encoder")
        return Specialist(lambda channels: PretrainedUNet(encoder, channels), deep_supervision_loss, _trunk)
    raise ValueError(f"unknown arm {arm!r}; expected one of {', '.join(ARMS)}")


def _trunk(network: nn.Module) -> list[nn.Parameter]:
    assert isinstance(network, PretrainedUNet)
    return network.trunk_parameters()


def train(arm: str, part: SliceSet, *, minutes: float, folder: Path, size: int, seed: int, weights: Path) -> Fit:
    """Train an arm on slices, or read it from `folder` if it was trained on the same with the same settings.

    `size` is the side of the training images in pixels.
    """
    plan, chosen = TrainingPlan(minutes=minutes, seed=seed), specialist(arm, weights)
    torch.manual_seed(seed)
    network = chosen.new(1 + len(part.classes))
    batches = SpecialistBatches(part, plan.batch_size, size, seed)
    key = {"minutes": minutes, "size": size, "seed": seed, "slices": len(part), "weights": str(weights)}
    pretrained = chosen.pretrained(network)
    return fit(arm, network, batches, chosen.loss, plan=plan, folder=folder, key=key, pretrained=pretrained)


def slices_of(cases: Sequence[AnnotatedCase], structures: dict[str, int], folder: Path, size: int) -> SliceSet:
    """The training slices of cases that are labelled for all `structures`, whether or not they show them."""
    builder = StoreBuilder(folder, max(256, size))
    for case in cases:
        builder.add(replace(case, structures=structures))
    [part] = builder.store().sets
    return part


def semantic_dice(
    network: nn.Module, cases: Sequence[AnnotatedCase], names: Sequence[str], size: int
) -> dict[str, float]:
    """Mean Dice over cases by structure; `names` are those of the network's classes 1, 2, ..."""
    settings = ValidationSettings()
    found: dict[str, list[float]] = {}
    for case in cases:
        masks: dict[int, list[NDArray[np.bool_]]] = {}
        for name in case.structures:
            numbers = chosen_slices(case, name, settings)
            for number in numbers:
                if number not in masks:
                    [answers] = answer_classes(network, [lay_out(case.picture(number), size)], len(names))
                    masks[number] = [answer.mask for answer in answers]
            predicted = np.stack([masks[number][names.index(name)] for number in numbers])
            found.setdefault(name, []).append(dice(predicted, case.mask(name)[numbers]))
    return {name: float(np.mean(figures)) for name, figures in found.items()}


def run(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train and measure the arms: arm -> structure -> Dice."""
    dataset = read_dataset(given.data)
    structures = {name: value for value, name in dataset.classes.items()}
    work = given.work / f"{given.data.name}-{given.cases}-seed{given.seed}"
    part = slices_of(annotated(given.data, "training", given.cases), structures, work / "slices", given.size)
    validation = annotated(given.data, "validation", given.validation)
    settings = {"size": given.size, "seed": given.seed, "weights": given.weights}
    print(f"{len(given.arms) * given.minutes:.0f} minutes of training on {len(part)} slices", flush=True)
    found = {}
    for arm in given.arms:
        fitted = train(arm, part, minutes=given.minutes, folder=work / f"{given.minutes:g}-minutes", **settings)
        found[arm] = semantic_dice(fitted.network, validation, list(part.classes.values()), given.size)
        print(f"{arm}: {fitted.steps} steps, mean {np.mean(list(found[arm].values())):.3f}", flush=True)
    return found


def table_of(found: dict[str, dict[str, float]]) -> str:
    """A Markdown table: a row for each arm."""
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    lines = [f"| semantic Dice | {' | '.join(names)} | mean |", "|---|" + "---:|" * (len(names) + 1)]
    for arm, figures in found.items():
        cells = [f"{figures[name]:.3f}" for name in names]
        lines.append(f"| {arm} | {' | '.join(cells)} | {np.mean(list(figures.values())):.3f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.specialists", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a data set with a dataset.json")
    parser.add_argument("--cases", type=int, default=30, help="of the training list (%(default)s)")
    parser.add_argument("--minutes", type=float, required=True, help="of training for each arm")
    parser.add_argument("--validation", type=int, default=6, help="cases of the validation list (%(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--size", type=int, default=192, help="long side of the images in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS, help="checkpoint with the encoder")
    parser.add_argument("--work", type=Path, default=Path("var/specialists"), help="networks, slices and figures")
    given = parser.parse_args(arguments)
    try:
        found = run(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(table_of(found))
    content = {**{name: str(value) for name, value in vars(given).items()}, "semantic": found}
    name = f"{given.data.name}-{given.cases}-{given.minutes:g}-seed{given.seed}.json"
    write_bytes(given.work / name, json.dumps(content, indent=1).encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
