# SPDX-License-Identifier: Apache-2.0
"""Specialists that K-Prism must hold against, each at its own game, trained for the same time on the same lists.

    python -m benchmarks.baselines --data FOLDER... [--unseen FOLDER...] --minutes 360 --out OUT [--report JSON]

A U-Net for each data set (semantic), one U-Net with click maps (interactive) and one UniverSeg (in-context), each of
them trained for `--minutes`. Started again with the same arguments it goes on with the first network, or the first data
set to measure, that is not finished. Give the `--max-slices` and `--seed` of the report that it is compared with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.baseline.comparison import compare
from benchmarks.baseline.estimate import measuring_seconds
from benchmarks.baseline.fitting import Fit, fit
from benchmarks.baseline.games import (
    SpecialistBatches,
    click_loss,
    in_context_loss,
    specialist_loss,
    unet,
)
from benchmarks.baseline.measuring import Baselines, measure
from benchmarks.baseline.universeg import UniverSeg
from kprism_model.data.building import build_store
from kprism_model.data.datasets import Dataset, read_dataset
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceSet
from kprism_model.evaluation.finished_results import FinishedResults
from kprism_model.evaluation.protocol import Protocol
from kprism_model.evaluation.report import EvaluationReport
from kprism_model.evaluation.report_files import load_report, save_report
from kprism_model.files import write_bytes
from kprism_model.training.plan import TrainingPlan

GAMES = ("semantic", "interactive", "in_context")


class Training:
    """Trains the networks, or reads those that are finished."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._folder = arguments.out / "networks"
        self._store = build_store(
            arguments.data, arguments.out / "slices", split="training", size=max(256, arguments.size)
        )
        self._sampler = Sampler(self._store, seed=arguments.seed, mixture=Mixture(absent=0.12))
        self._plan = TrainingPlan(minutes=arguments.minutes, seed=arguments.seed, batch_size=arguments.batch_size)

    def specialist(self, dataset: Dataset) -> Fit:
        """The U-Net of one data set."""
        part = next(part for part in self._store.sets if part.name == dataset.name)
        batches = SpecialistBatches(part, self._plan.batch_size, self._arguments.size, self._plan.seed)
        network = self._new(unet, 3, 1 + len(dataset.classes))
        return self._fit(f"semantic_{dataset.name}", network, batches, specialist_loss, self._arguments.size, [part])

    def clicks(self) -> Fit:
        """The U-Net with click maps."""
        return self._fit("interactive", self._new(unet, 6, 1), self._batch(False), click_loss, self._arguments.size)

    def in_context(self) -> Fit:
        """The UniverSeg network."""
        size = self._arguments.in_context_size
        return self._fit(
            "in_context",
            self._new(UniverSeg, self._arguments.in_context_width),
            self._batch(True),
            in_context_loss,
            size,
        )

    def _batch(self, in_context: bool) -> Any:
        size = self._arguments.in_context_size if in_context else self._arguments.size
        return lambda step: self._sampler.batch(self._plan.batch_size, step=step, size=size)

    def _new(self, make: Any, *sizes: int) -> nn.Module:
        torch.manual_seed(self._plan.seed)
        network: nn.Module = make(*sizes)
        return network

    def _fit(
        self, name: str, network: nn.Module, draw: Any, loss: Any, size: int, parts: Sequence[SliceSet] = ()
    ) -> Fit:
        """Train on `parts`, by default all, or read what is finished of the same settings and lists."""
        lists = [[part.name, len(part)] for part in parts or self._store.sets]
        key = {"plan": asdict(self._plan), "size": size, "lists": lists, "parameters": parameters(network)}
        return fit(name, network, draw, loss, plan=self._plan, folder=self._folder, key=key)


def parameters(network: nn.Module) -> int:
    """The number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def run(arguments: argparse.Namespace) -> EvaluationReport:
    """Train and measure all baselines; writes the report and, with `--report`, the comparison."""
    reference = load_report(arguments.report) if arguments.report else None
    trained = [read_dataset(folder) for folder in arguments.data]
    unseen = [read_dataset(folder) for folder in arguments.unseen]
    protocol = Protocol(
        split=arguments.split, seed=arguments.seed, draws=arguments.draws, max_slices=arguments.max_slices
    )
    _announce(arguments, trained, unseen, protocol)
    training = Training(arguments)
    clicks = training.clicks() if "interactive" in arguments.games else None
    in_context = training.in_context() if "in_context" in arguments.games else None
    specialists = {dataset.name: training.specialist(dataset) for dataset in trained if "semantic" in arguments.games}
    settings = _settings(arguments, {"clicks": clicks, "in_context": in_context, **specialists})
    report = EvaluationReport({**protocol.to_dict(), **settings})
    finished = FinishedResults(arguments.out / "finished", dict(report.protocol))
    for dataset in [*trained, *unseen]:
        result = finished.load(dataset)
        if result is None:
            networks = Baselines(
                specialist=_network(specialists.get(dataset.name)),
                clicks=_network(clicks),
                in_context=_network(in_context),
                size=arguments.size,
                in_context_size=arguments.in_context_size,
            )
            result = measure(networks, dataset, protocol, trained=dataset in trained)
            finished.save(dataset, result)
        report.results.append(result)
    save_report(report, arguments.out)
    if reference is not None:
        table = compare(report, reference)
        write_bytes(arguments.out / "comparison.md", table.encode())
        print(table)
    return report


def _announce(
    arguments: argparse.Namespace, trained: Sequence[Dataset], unseen: Sequence[Dataset], protocol: Protocol
) -> None:
    """Say how long all of it will take."""
    count = (len(trained) if "semantic" in arguments.games else 0) + len(set(arguments.games) - {"semantic"})
    measuring = measuring_seconds(
        trained,
        unseen,
        protocol,
        arguments.games,
        size=arguments.size,
        in_context=UniverSeg(arguments.in_context_width),
        in_context_size=arguments.in_context_size,
    )
    hours = count * arguments.minutes / 60
    print(
        f"{count} networks of {arguments.minutes:g} minutes each: {hours:.1f} hours of training, then about "
        f"{measuring / 3600:.1f} hours of measuring; less what is finished already",
        flush=True,
    )


def _network(fitted: Fit | None) -> nn.Module | None:
    return None if fitted is None else fitted.network


def _settings(arguments: argparse.Namespace, fits: dict[str, Fit | None]) -> dict[str, Any]:
    """What else the figures depend on, for the report."""
    made = {name: one for name, one in fits.items() if one is not None}
    return {
        "minutes_per_network": arguments.minutes,
        "size": arguments.size,
        "in_context_size": arguments.in_context_size,
        "batch_size": arguments.batch_size,
        "steps": {name: one.steps for name, one in made.items()},
        "parameters": {name: parameters(one.network) for name, one in made.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the arguments say; bad input ends with a sentence and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders to train on and to measure")
    parser.add_argument(
        "--unseen", type=Path, nargs="*", default=[], help="folders to measure only, by clicks and cases"
    )
    parser.add_argument("--minutes", type=float, required=True, help="of training for each network")
    parser.add_argument("--size", type=int, default=192, help="long side in pixels of the U-Nets' images")
    parser.add_argument("--in-context-size", type=int, default=128, help="the same of UniverSeg's (published: 128)")
    parser.add_argument("--in-context-width", type=int, default=32, help="channels of UniverSeg (published: 64)")
    parser.add_argument("--batch-size", type=int, default=TrainingPlan.batch_size)
    parser.add_argument("--games", nargs="+", choices=GAMES, default=GAMES)
    parser.add_argument("--split", default="test")
    parser.add_argument("--draws", type=int, default=5, help="sets of references")
    parser.add_argument("--max-slices", type=int, help="at most about so many slices of each data set, whole cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="evaluation.json of the checkpoint to compare with")
    parser.add_argument("--out", type=Path, required=True, help="folder for networks, slices and the report")
    try:
        run(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
