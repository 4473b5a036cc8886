# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a network by one protocol: semantic, in-context, interactive and chained, on lists of real cases.

All figures are at the images' own resolution; volumes are measured slice by slice in the plane that
`kprism_model.orientation` defines, and as whole volumes where a figure is per case.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.anatomy import foreign_classes
from kprism_model.data.datasets import SPLITS, Case, Dataset, read_dataset, slice_counts
from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.evaluation.dataset import DatasetEvaluation, EvaluationReferences, encoded_blocks, known_classes
from kprism_model.evaluation.finished_results import FinishedResults
from kprism_model.evaluation.instances import INSTANCES_PER_IMAGE, InstanceSampling, instance_classes
from kprism_model.evaluation.reference_pool import RETRIEVAL_CANDIDATES, ReferencePool
from kprism_model.evaluation.report import DatasetResult, EvaluationReport
from kprism_model.evaluation.report_files import save_report
from kprism_model.evaluation.report_tables import to_markdown
from kprism_model.interaction.click_sessions import CLICKS_SHOWN
from kprism_model.predictor import Predictor

MODES = ("semantic", "in_context", "interactive", "chained")

PROTOCOLS = ("instances", "first")
"""Structures of many instances are clicked one instance at a time, or all of a class together as at first."""


@dataclass(frozen=True)
class Protocol:
    """What is measured and how.

    `max_slices` takes whole cases of a data set in an order drawn by `seed` while they fit, at least one. In-context
    figures use `draws` sets of max(`references`) references, of which a smaller count takes the first, and as many
    retrieved ones. "chained" clicks after a semantic, and after an in-context, first mask. Clicks are answered in
    windows (`kprism_model.windowed`) unless `window` is false. `name` is one of `PROTOCOLS`. ValueError for an unknown
    mode, split or name, or bad counts.
    """

    modes: Sequence[str] = MODES
    split: str = "test"
    seed: int = 0
    references: Sequence[int] = (1, 5)
    draws: int = 5
    click_limit: int = 20
    max_slices: int | None = None
    name: str = PROTOCOLS[0]
    window: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise ValueError(f"unknown modes {unknown}; expected one or more of {', '.join(MODES)}")
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; expected one of {', '.join(SPLITS)}")
        if self.name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.name!r}; expected one of {', '.join(PROTOCOLS)}")
        if not self.references or min(self.references) < 1 or self.draws < 1:
            counts = f"{list(self.references)} and {self.draws}"
            raise ValueError(f"reference counts and draws must be at least 1, got {counts}")
        if self.click_limit < CLICKS_SHOWN[-1]:
            raise ValueError(f"click_limit must be at least {CLICKS_SHOWN[-1]}, got {self.click_limit}")
        if self.max_slices is not None and self.max_slices < 1:
            raise ValueError(f"max_slices must be at least 1, got {self.max_slices}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as a report states it."""
        instances = {"instances_per_image": INSTANCES_PER_IMAGE, "minimum_pixels": MINIMUM_PIXELS}
        return {
            "protocol": self.name,
            "split": self.split,
            "seed": self.seed,
            "modes": " ".join(self.modes),
            "references": " ".join(map(str, self.references)),
            "draws": self.draws,
            "retrieval_candidates": RETRIEVAL_CANDIDATES,
            "click_limit": self.click_limit,
            "max_slices": self.max_slices,
            **(instances if self.name == "instances" else {}),
            "window": self.window,
        }

    def instance_sampling(self, dataset: Dataset) -> InstanceSampling | None:
        """What is clicked one instance at a time in a data set; None by the first protocol."""
        return InstanceSampling(tuple(instance_classes(dataset)), self.seed) if self.name == "instances" else None


def evaluate(
    predictor: Predictor,
    datasets: Sequence[Path],
    protocol: Protocol | None = None,
    *,
    weights_version: str = "",
    keep: Path | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Measure `predictor` on the folders `datasets`, each with a dataset.json.

    The result of each finished data set is kept in the folder `keep`, if one is given, and not measured again under the
    same protocol, `weights_version`, dataset.json and classes of the other data sets. Raises ValueError for data that
    cannot be read, or two data sets of one name.
    """
    protocol = protocol or Protocol()
    report = EvaluationReport({**protocol.to_dict(), "weights_version": weights_version})
    read = [read_dataset(folder) for folder in datasets]
    repeated = {dataset.name for dataset in read if [d.name for d in read].count(dataset.name) > 1}
    if repeated:
        raise ValueError(f"data sets must have different names; listed twice: {', '.join(sorted(repeated))}")
    start = time.perf_counter()
    for dataset in read:
        foreign = foreign_classes(dataset, read)
        finished = None if keep is None else FinishedResults(keep, {**report.protocol, "foreign": foreign})
        result = None if finished is None else finished.find(dataset)
        if result is None:
            result = evaluate_dataset(predictor, dataset, protocol, foreign, progress=progress)
            if finished is not None:
                finished.keep(dataset, result)
        report.results.append(result)
    report.protocol["seconds"] = round(time.perf_counter() - start, 1)
    return report


def evaluate_dataset(
    predictor: Predictor,
    dataset: Dataset,
    protocol: Protocol,
    foreign: Sequence[str] = (),
    *,
    progress: bool = True,
) -> DatasetResult:
    """Measure one data set in all modes of `protocol`; `foreign` classes cannot be in its images."""
    known = known_classes(predictor, dataset)
    foreign = [name for name in foreign if name in predictor.registry]
    trained = "all" if len(known) == len(dataset.classes) else "some" if known else "none"
    cases, sample = choose_cases(dataset, protocol)
    result = DatasetResult(dataset.name, sample, trained)
    if not cases:
        result.notes.append(f"{dataset.name}: the {protocol.split} list holds no labelled case")
        return result
    if unknown := [name for index, name in dataset.classes.items() if index not in known]:
        result.notes.append(f"{dataset.name}: no semantic figures of {', '.join(unknown)}, not a trained class")
    knowledge = EvaluationReferences()
    if "in_context" in protocol.modes or "chained" in protocol.modes:
        pool = ReferencePool(dataset, {case.patient for case in cases})
        drawn = pool.draw(predictor, protocol.references, protocol.draws, protocol.seed, result.notes)
        retrieved = pool.candidates(predictor, protocol.seed) if "in_context" in protocol.modes else None
        knowledge = EvaluationReferences(drawn, retrieved)
    instances = protocol.instance_sampling(dataset)
    if instances is not None and instances.indices and "interactive" in protocol.modes:
        names = ", ".join(dataset.classes[index] for index in instances.indices)
        result.notes.append(
            f"{dataset.name}: clicked one instance at a time, at most {instances.most} an image: {names}"
        )
    run = DatasetEvaluation(
        predictor,
        dataset,
        protocol.modes,
        knowledge,
        protocol.click_limit,
        foreign,
        instances,
        window=protocol.window,
    )
    with tqdm(total=len(cases), desc=dataset.name, disable=not progress) as bar:
        for block in encoded_blocks(predictor, dataset, cases):
            run.measure(block)
            bar.update(len({part.case for part in block}))
    result.figures = run.accumulator.figures()
    result.curves = run.accumulator.curves()
    result.worst = run.accumulator.worst_by_mode()
    return result


def choose_cases(dataset: Dataset, protocol: Protocol) -> tuple[tuple[Case, ...], str]:
    """The labelled cases of the split, or a seeded sample of at most `max_slices`, and a sentence that says which."""
    labelled = [case for case in dataset.cases(protocol.split) if case.label is not None]
    slices = [slice_counts(case)[0] for case in labelled]
    chosen = list(range(len(labelled)))
    if protocol.max_slices is not None and sum(slices) > protocol.max_slices:
        order = np.random.default_rng(protocol.seed).permutation(len(labelled)).tolist()
        total = np.cumsum([slices[number] for number in order])
        chosen = sorted(order[: max(1, int((total <= protocol.max_slices).sum()))])
    taken = sum(slices[number] for number in chosen)
    sample = f"{len(chosen)} of {len(labelled)} cases, {taken} of {sum(slices)} slices"
    return tuple(labelled[number] for number in chosen), sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the `evaluate` command."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights (.safetensors with its .json beside)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of data sets")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=PROTOCOLS[0],
        help="instances: structures of many instances, such as nuclei, are clicked one at a time (default); first: all "
        "of a class is clicked together",
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="what to measure (default: all)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the report (JSON, Markdown, pictures); data sets finished there by the same command are kept",
    )
    parser.add_argument("--max-slices", type=int, help="at most about so many slices of each data set, whole cases")
    parser.add_argument("--seed", type=int, default=0, help="draws the references and, with --max-slices, the cases")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--draws", type=int, default=5, help="sets of references to draw (default: 5)")
    parser.add_argument("--no-window", action="store_true", help="answer all clicks on the whole image")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def run(args: argparse.Namespace) -> int:
    """Evaluate as the arguments say, write the report and print its tables."""
    checkpoint = load_checkpoint(args.checkpoint, device=args.device)
    report = evaluate(
        Predictor(checkpoint.model, checkpoint.registry, device=args.device),
        args.data,
        Protocol(
            modes=tuple(args.modes),
            split=args.split,
            seed=args.seed,
            draws=args.draws,
            max_slices=args.max_slices,
            name=args.protocol,
            window=not args.no_window,
        ),
        weights_version=checkpoint.weights_version,
        keep=args.out / "finished",
    )
    save_report(report, args.out)
    print(to_markdown(report))
    return 0
