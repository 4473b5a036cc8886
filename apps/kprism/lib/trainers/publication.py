# SPDX-License-Identifier: Apache-2.0
"""From trained weights to what serves: judge them, publish a version if it answers anything, keep the weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kprism_model.classes import ClassRegistry
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import Finetuner
from kprism_model.training.run_state import has_state
from kprism_model.training.validation import Score, mean_dice
from kprism_model.training.weights import average_weights
from lib.learning.versions import Versions
from lib.trainers.finetune_dataset import FinetuneDataset
from lib.trainers.finetune_run import FinetuneRun, Part
from lib.trainers.gate import Decision, summary
from lib.trainers.judging import Judge, Trained
from lib.trainers.progress import Progress
from lib.trainers.report_page import TrainingReport
from lib.trainers.working_weights import FINAL, fold_name

NEW = "new"
"""Name of the new weights in the file of scores until they have a version."""


@dataclass
class Training:
    """What was trained on a data set: networks by name, minutes in all, and steps of the longest fine-tuning."""

    dataset: FinetuneDataset
    models: dict[str, KPrism] = field(default_factory=dict)
    registries: dict[str, ClassRegistry] = field(default_factory=dict)
    steps: int = 0
    minutes: float = 0.0
    processes: int = 1

    def add(self, part: Part, tuner: Finetuner) -> None:
        """Add a fine-tuning that has ended."""
        self.models[part.name], self.registries[part.name] = tuner.averaged(), tuner.registry
        self.minutes += tuner.seconds / 60
        self.processes = tuner.workers.count
        self.steps = max(self.steps, tuner.step)

    def folds(self) -> dict[int, Trained]:
        """The network and classes of each fold that was trained without its patients."""
        trained = (fold for fold in self.dataset.folds if fold_name(fold) in self.models)
        return {fold: (self.models[fold_name(fold)], self.registries[fold_name(fold)]) for fold in trained}

    def combined(self, shipped: Trained, share: float) -> Trained:
        """The network that can serve: `share` of the mean of all networks, the rest shipped weights."""
        trained = [(model, self.registries[name]) for name, model in self.models.items()]
        return average_weights([*trained, shipped], [*[share / len(trained)] * len(trained), 1 - share])


@dataclass(frozen=True)
class Published:
    """The end of a training: the number of the new version or None, what the status says, report and metadata."""

    number: int | None
    message: str
    best: float
    report: TrainingReport
    metadata: dict[str, Any]


def publish(
    training: Training,
    judge: Judge,
    run: FinetuneRun,
    versions: Versions,
    progress: Progress,
    *,
    extra: Mapping[str, Any] | None = None,
) -> Published:
    """Judge the new weights, and publish a version if it changes who answers; `extra` is added to its metadata."""
    dataset = training.dataset
    progress.update("measuring the new weights")
    share, scores = judge.scores_of_folds(training.folds())
    shipped = run.served.shipped
    model, registry = training.combined((shipped.model, shipped.registry), share)
    decisions = judge.decide(scores, NEW)
    metadata = {**_metadata(training, run, decisions, scores), "tuned_share": share, **(extra or {})}
    number = None
    routes, provisional = _routes(decisions, run)
    before = {mode: sorted(names) for mode, names in run.served.provisional.items()}
    if decisions and (routes, provisional) != (run.served.routes.to_json(), before):
        progress.update("publishing")
        number = versions.publish(
            model,
            registry,
            routes=routes,
            metadata={**metadata, "provisional": provisional, "kinds": _kinds(dataset, run)},
            parent=run.served.number,
            chosen=run.chosen,
        )
    verdict = summary(decisions) or "not enough patients to tell anything: one patient, or all in one fold"
    message = f"published as version {number}: {verdict}" if number else f"nothing changes: {verdict}"
    try:
        if number is not None:
            judge.rename(NEW, versions.version(number).weights_version)
        _keep(training, run, (model, registry), run.served.number if number is None else number)
    except OSError as error:  # what is published serves already
        message += f"; the next training starts anew, its weights could not be kept: {error}"
    best = float(np.mean([decision.best for decision in decisions])) if decisions else 0.0
    return Published(
        number, message, best, TrainingReport(number, message, decisions, scores, dataset, metadata), metadata
    )


def _routes(
    decisions: Sequence[Decision], run: FinetuneRun
) -> tuple[dict[str, dict[str, int | None]], dict[str, list[str]]]:
    """Who answers from now on, and what of it is provisional; what was not judged stays as it is."""
    routes: dict[str, dict[str, int | None]] = {mode: dict(own) for mode, own in run.served.routes.by_mode.items()}
    provisional = {mode: set(names) for mode, names in run.served.provisional.items()}
    for decision in decisions:
        mode, structure = decision.kind
        routes.setdefault(mode, {}).pop(structure, None)
        provisional.setdefault(mode, set()).discard(structure)
        if decision.answered_by_site:
            routes[mode][structure] = decision.number
            if decision.provisional:
                provisional[mode].add(structure)
    routes = {mode: own for mode, own in routes.items() if own}
    return routes, {mode: sorted(names) for mode, names in provisional.items() if names}


def _kinds(dataset: FinetuneDataset, run: FinetuneRun) -> dict[str, list[str]]:
    """The kinds of images in which each structure was labelled, by the shipped weights."""
    served, shipped = run.served, run.served.shipped
    kinds = {name: set(own) for name, own in served.kinds.items()}
    own = served.parts.get(served.number)
    known = set() if own is None else set(own.metadata["note"].get("labels", ()))
    predictor = Predictor(shipped.model, shipped.registry, device=run.device)
    for case in dataset.judged:
        if dataset.keys[case.name] in known:
            continue
        kind = predictor.image_kind(predictor.embed([case.picture(number) for number in range(len(case.labels))]))
        if kind is not None:
            for name in case.structures:
                kinds.setdefault(name, set()).add(kind.name)
    return {name: sorted(own) for name, own in kinds.items()}


def _keep(training: Training, run: FinetuneRun, combined: Trained, serving: int) -> None:
    """Keep the weights for the next training to go on from; a new fold starts from the combined ones."""
    dataset = training.dataset
    if FINAL not in training.models:
        run.working.save(FINAL, *combined, _seen(training, run), None, serving=serving)
    for name, model in training.models.items():
        unseen = next((dataset.patients_in(fold) for fold in dataset.folds if fold_name(fold) == name), [])
        patients = run.seen[name].union(dataset.patients).difference(unseen)
        state = run.folder / name if has_state(run.folder / name) else None  # weights from elsewhere have none
        run.working.save(name, model, training.registries[name], patients, state, serving=serving)


def _seen(training: Training, run: FinetuneRun) -> list[str]:
    """All patients that the new weights have learned from, in earlier trainings too: labels may have been removed."""
    return sorted(set(training.dataset.patients).union(*run.seen.values()))


def _metadata(
    training: Training, run: FinetuneRun, decisions: Sequence[Decision], scores: Sequence[Score]
) -> dict[str, Any]:
    """The metadata of a version: what it was compared with and trained on, its parent, its metrics."""
    dataset = training.dataset
    return {
        "base": run.served.shipped.weights_version,
        "trained_on": [submission.image_id for submission in dataset.used],
        "labels": [submission.key for submission in dataset.used],
        "patients": _seen(training, run),
        "skipped": dataset.skipped,
        "parent": run.served.number,
        "steps": training.steps,
        "minutes": round(training.minutes, 2),
        "processes": training.processes,
        "dice": round(float(np.mean(list(means.values()))), 4) if (means := mean_dice(scores)) else None,
        "metrics_before": _rounded({decision.kind: decision.before for decision in decisions}),
        "metrics": _rounded(means),
        "verdict": summary(decisions),
        "gate": [_described(decision) for decision in decisions],
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _rounded(means: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Mean Dice by mode and structure, with keys like "semantic liver"."""
    return {f"{mode} {structure}": round(value, 4) for (mode, structure), value in sorted(means.items())}


def _described(decision: Decision) -> dict[str, Any]:
    mode, structure = decision.kind
    dice = {name: round(value, 4) for name, value in decision.dice.items()}
    return {
        "mode": mode,
        "structure": structure,
        "outcome": decision.outcome,
        "provisional": decision.provisional,
        "patients": decision.patients,
        "dice": dice,
    }
