# SPDX-License-Identifier: Apache-2.0
"""What the trainings of `benchmarks.effort` have led to, beside specialists that were trained on the same labels.

    PYTHONPATH=apps/kprism python -m benchmarks.outcome --data ../shared/data/isic_dermoscopy

Semantic Dice on the test list of the site's data set: of the shipped weights, as far as they know its structures; of
what answers in the end, which is another version for each structure; and of two specialists (`benchmarks.specialists`)
that are trained here on the same submitted labels, all of them, each for as long as all trainings together. Says first
how long it will take. Writes outcome-NAME.json and .md to `--out`.

What the shipped weights know is not measured: its answers stay the same bit for bit, which
`tests/unit/test_routed_answers.py` proves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from benchmarks.baseline.measuring import Baselines, measure
from benchmarks.places import SHIPPED_WEIGHTS
from benchmarks.specialists import train
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.building import build_store
from kprism_model.data.datasets import Dataset, read_dataset
from kprism_model.evaluation.evaluate import evaluate
from kprism_model.evaluation.protocol import Protocol
from kprism_model.evaluation.report import EvaluationReport
from kprism_model.files import write_bytes
from kprism_model.predictor import Predictor
from lib.learning.training_schedule import LABELS_PER_THOROUGH_TRAINING
from lib.trainers.active_learner import THOROUGH_FACTOR

SPECIALISTS = {"unet": "U-Net", "pretrained_unet": "U-Net on the shipped image encoder"}
"""Arm of `benchmarks.specialists` -> its name in the table."""

DICE = {"where present": "dice_present", "per case": "dice_case"}
"""The figures that are compared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.outcome", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the data set of the effort run")
    parser.add_argument("--work", type=Path, help="of the effort run; default: var/effort/NAME-same")
    parser.add_argument("--max-slices", type=int, default=40, help="of the test list (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=192, help="long side in pixels of the U-Nets' images (%(default)s)")
    parser.add_argument("--specialists", nargs="+", choices=list(SPECIALISTS), default=list(SPECIALISTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    work = (given.work or Path("var/effort") / f"{given.data.name}-same").resolve()
    try:
        settings = json.loads((work / "settings.json").read_text())
        site = read_dataset(given.data)
        versions = work / "training" / "studies" / ".kprism" / "versions"
        routes = semantic_routes(versions)
        submitted = export_labels(site, work / "training" / "studies", work / "submitted")
    except (OSError, ValueError) as error:
        parser.error(f"{work} holds no finished run of benchmarks.effort with training: {error}")
    minutes = minutes_of_trainings(len(submitted.cases("training")), int(settings["after"]), float(settings["minutes"]))
    print(f"{len(given.specialists) * minutes:.0f} minutes for the U-Nets and some for measuring", flush=True)
    protocol = Protocol(modes=("semantic",), seed=given.seed, max_slices=given.max_slices)
    reports = {
        "shipped weights": measured(SHIPPED_WEIGHTS, given.data, protocol),
        "after all trainings": routed(versions, routes, given.data, protocol),
    }
    for arm in given.specialists:
        network = fitted(arm, submitted, minutes, work / "unet", size=given.size, seed=given.seed)
        baseline = Baselines(network, None, None, given.size, given.size)
        reports[SPECIALISTS[arm]] = EvaluationReport(
            protocol.to_dict(), [measure(baseline, site, protocol, trained=True)]
        )
    write_results(given.out, site, reports, {**settings, "data": site.name, "unet_minutes": minutes})
    return 0


def minutes_of_trainings(labels: int, after: int, minutes: float) -> float:
    """How long the server has trained in all: after every `after` labels for `minutes`, or thoroughly."""
    total, thorough = 0.0, 0
    for count in range(after, labels + 1, after):
        is_thorough = count - thorough >= LABELS_PER_THOROUGH_TRAINING
        thorough = count if is_thorough else thorough
        total += minutes * (THOROUGH_FACTOR if is_thorough else 1)
    return total


def semantic_routes(folder: Path) -> dict[str, int]:
    """Structure -> the version that answers it in the end; ValueError if the shipped weights answer everything."""
    number = int(json.loads((folder / "current.json").read_text())["number"])
    if not number:
        raise ValueError("no training was published")
    note = json.loads((folder / f"{number:04d}.json").read_text())["metadata"]["note"]
    return {name: version or number for name, version in note["routes"]["semantic"].items()}


def export_labels(site: Dataset, studies: Path, folder: Path) -> Dataset:
    """The submitted labels as a data set in the Decathlon's layout: the site's numbering, its images by link."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: value for value, name in site.classes.items()}
    entries = []
    for file in sorted((studies / ".kprism" / "intake" / "cases").glob("*.json")):
        entry = json.loads(file.read_text())
        image = next(path for path in studies.iterdir() if path.name.split(".")[0] == entry["image_id"])
        stored = nibabel.Nifti1Image.from_filename(studies / ".kprism" / "intake" / entry["label"])
        labels = np.zeros(stored.shape, np.uint8)
        for name, value in entry["structures"].items():
            labels[np.asarray(stored.dataobj) == value] = values[name]
        label = folder / f"label-{image.name}"
        if image.suffix == ".png":
            Image.fromarray(labels.reshape(labels.shape[:2]).T).save(label)
        else:
            nibabel.save(nibabel.Nifti1Image(labels, nibabel.Nifti1Image.from_filename(image).affine), label)
        link = folder / image.name
        link.unlink(missing_ok=True)
        link.symlink_to(image.resolve())
        entries.append({"image": image.name, "label": label.name, "patient": entry["patient"]})
    classes = {str(value): name for value, name in {0: "background", **site.classes}.items()}
    content = {"name": site.name, "modality": {"0": site.modality}, "labels": classes, "training": entries}
    write_bytes(folder / "dataset.json", json.dumps(content, indent=1).encode())
    return read_dataset(folder)


def measured(weights: Path, folder: Path, protocol: Protocol) -> EvaluationReport:
    """Semantic figures of a checkpoint."""
    checkpoint = load_checkpoint(weights)
    predictor = Predictor(checkpoint.model, checkpoint.registry)
    return evaluate(predictor, [folder], protocol, weights_version=checkpoint.weights_version)


def routed(versions: Path, routes: Mapping[str, int], folder: Path, protocol: Protocol) -> EvaluationReport:
    """Semantic figures of each structure, of the version that answers it; others are left out."""
    reports = {number: measured(versions / f"{number:04d}", folder, protocol) for number in set(routes.values())}
    [whole] = reports[max(reports)].results
    whole.figures = [
        figure
        for number, report in reports.items()
        for figure in report.figures
        if routes.get(figure.class_name) == number
    ]
    return EvaluationReport(protocol.to_dict(), [whole])


def fitted(arm: str, submitted: Dataset, minutes: float, folder: Path, *, size: int, seed: int) -> torch.nn.Module:
    """A specialist after so many minutes on the submitted labels."""
    part = build_store([submitted.folder], folder / "slices", split="training", size=max(256, size)).sets[0]
    return train(arm, part, minutes=minutes, folder=folder, size=size, seed=seed, weights=SHIPPED_WEIGHTS).network


def write_results(out: Path, site: Dataset, reports: dict[str, EvaluationReport], settings: dict[str, Any]) -> None:
    """Print the table and write it with all figures."""
    found = {
        who: {kind: report.by_dataset("semantic", name).get(site.name) for kind, name in DICE.items()}
        | {name: _value(report, site, name) for name in site.classes.values()}
        for who, report in reports.items()
    }
    columns = [*DICE, *site.classes.values()]
    lines = [
        f"| semantic Dice, test list of {site.name} | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for who, one in found.items():
        cells = ["" if one[column] is None else f"{one[column]:.3f}" for column in columns]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    print(table)
    out.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "finished": time.strftime("%Y-%m-%d"), "semantic": found}
    write_bytes(out / f"outcome-{site.name}.json", json.dumps(content, indent=1).encode())
    write_bytes(out / f"outcome-{site.name}.md", (table + "\n").encode())


def _value(report: EvaluationReport, site: Dataset, structure: str) -> float | None:
    """The Dice of a structure where it is present."""
    figure = report.figure(site.name, structure, "semantic", DICE["where present"])
    return None if figure is None else figure.value


if __name__ == "__main__":
    raise SystemExit(main())
