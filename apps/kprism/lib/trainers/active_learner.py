# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's train task: fine-tune on the submitted labels, judge, publish, report.

MONAI Label runs it in a process of its own, so that a training can never hold up an answer, and kills that process to
stop it. Everything on the disk is therefore whole at any moment: the run's state, the versions, the progress.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ignite.engine import Engine, Events
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from kprism_model.network.kprism import KPrism
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import FinetunePlan, Finetuner, mixed
from kprism_model.training.validation import Score, ValidationSettings, mean_dice, validate
from lib.files import is_locked, locked
from lib.gate import Verdict, judge
from lib.intake import Intake
from lib.ledger import Submission
from lib.options import Option, read_options
from lib.trainers.material import Material, gather
from lib.trainers.progress import Progress
from lib.trainers.report_page import write_report
from lib.trainers.schedule import FAILED, FINISHED, TrainingLog
from lib.versions import Served, Versions

logger = logging.getLogger(__name__)

MINUTES = Option(10.0, low=0.01, high=1440.0)
"""How long a training may last: the default, and the limits of what a client may ask for."""

SHARES = (1.0, 0.7, 0.4)
"""Shares of the new weights in the candidates that validation chooses from."""


@dataclass(frozen=True)
class Candidate:
    """Tuned weights mixed with the published ones, and what the gate says of them."""

    model: KPrism
    share: float
    scores: list[Score]
    verdict: Verdict


class ActiveLearner(TrainTask):  # type: ignore[misc]
    """Options: `max_minutes` of training; `distillation`, `pull` and `mix` keep the network from forgetting."""

    options: ClassVar[Mapping[str, Option]] = {
        "max_minutes": MINUTES,
        "batch_size": Option(8, low=2, high=256),
        "learning_rate": Option(3e-4, low=1e-7, high=1.0),
        "distillation": Option(True),
        "pull": Option(True),
        "mix": Option(True),
    }

    def __init__(
        self, intake: Intake, versions: Versions, folder: Path, device: str, *, minutes: float = float(MINUTES.default)
    ) -> None:
        super().__init__("Learns from the submitted labels and publishes weights that are no worse on validation cases")
        self._intake, self._versions, self._folder, self._device = intake, versions, folder, device
        self._settings = ValidationSettings()
        self._options = {**self.options, "max_minutes": replace(MINUTES, default=minutes)}
        self.log = TrainingLog(folder)

    def config(self) -> dict[str, Any]:
        """What both viewers show and send back."""
        return {name: option.shown() for name, option in self._options.items()}

    def check(self, request: Mapping[str, Any]) -> None:
        """RequestError for options that make no sense."""
        read_options(self._options, request)

    def stats(self) -> dict[str, Any]:
        """Progress as both viewers read it; of a training that was killed it says so."""
        stats = Progress.read(self._folder)
        if stats and "total_time" not in stats and not is_locked(self._folder):
            stats["message"] = f"it was cut off while {stats['message']}"
        return stats

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train; returns what `stats` says at the end."""
        options = read_options(self._options, request)
        self._folder.mkdir(parents=True, exist_ok=True)
        progress = Progress(self._folder)
        with locked(self._folder):
            submissions = self._intake.ledger.submissions()
            self.log.begin([submission.key for submission in submissions])
            progress.begin("reading labels", found=len(submissions))
            try:
                self._train(options, submissions, progress)
            except Exception as error:
                self.log.end(FAILED)
                progress.end(f"nothing was published: {error}")
                raise
            self.log.end(FINISHED)
        return self.stats()

    def _train(self, options: dict[str, Any], submissions: Sequence[Submission], progress: Progress) -> None:
        served = self._versions.load(device=self._device)
        plan = FinetunePlan(
            minutes=options["max_minutes"],
            batch_size=options["batch_size"],
            learning_rate=options["learning_rate"],
            **{name: 0.0 for name in ("distillation", "pull") if not options[name]},
        )
        run, identity = self._run_folder(served, submissions, options)
        native = served.checkpoint.model.config.native_size
        material = gather(submissions, self._intake.load, run / "slices", size=native, settings=self._settings)
        progress.tell("validating the serving weights", used=len(material.used), skipped=material.skipped)
        predictor = Predictor(served.checkpoint.model, served.checkpoint.registry, device=self._device)
        before = validate(predictor, material.validation, material.examples, settings=self._settings)
        progress.tell("training", best_metric=round(_mean(before), 4))
        starts = material.starts(predictor, served.checkpoint.registry)
        tuner = self._tuner(served, material, plan, run, identity, starts)
        follow(tuner, progress)
        progress.tell("validating the new weights")
        candidates = self._candidates(tuner, served, material, before, SHARES if options["mix"] else (1.0,))
        chosen = max(candidates, key=lambda one: (one.verdict.passed, one.verdict.after, one.verdict.margin))
        facts = self._facts(served, material, tuner, before, chosen)
        progress.tell("publishing")
        number = self._publish(served, tuner, chosen, facts)
        outcome = f"published as version {number}" if number else "not published; the serving weights stay"
        message = "; ".join(part for part in (f"{outcome}: {chosen.verdict}", material.note) if part)
        report = write_report(
            self._folder / "reports", number, message, before, chosen.scores, material, run / "log.jsonl", facts
        )
        progress.end(
            message,
            best_metric=round(max(chosen.verdict.before, chosen.verdict.after if number else 0.0), 4),
            eval=_rounded(chosen.scores),
            published=number,
            report=str(report),
        )
        logger.info("%s", message)
        shutil.rmtree(run, ignore_errors=True)

    def _run_folder(
        self, served: Served, submissions: Sequence[Submission], options: Mapping[str, Any]
    ) -> tuple[Path, dict[str, Any]]:
        """The folder of this run, with the state of an earlier, killed attempt at the same; other runs are deleted."""
        identity = {
            "parent": served.checkpoint.weights_version,
            "cases": sorted(submission.key for submission in submissions),
            "options": dict(options),
        }
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        runs = self._folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        for old in runs.iterdir():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)
        return runs / name, identity

    def _tuner(
        self,
        served: Served,
        material: Material,
        plan: FinetunePlan,
        run: Path,
        identity: Mapping[str, Any],
        starts: Mapping[str, References],
    ) -> Finetuner:
        """The trainer, where an earlier attempt at the same run left it; from the start if that is damaged."""

        def make() -> Finetuner:
            return Finetuner(
                served.checkpoint, material.store, plan, run, starts=starts, identity=identity, device=self._device
            )

        try:
            return make()
        except ValueError as error:
            if not (run / "state.json").exists():
                raise
            logger.warning("The interrupted training cannot be resumed and starts anew: %s", error)
            (run / "state.json").unlink()
            return make()

    def _candidates(
        self, tuner: Finetuner, served: Served, material: Material, before: Sequence[Score], shares: Sequence[float]
    ) -> list[Candidate]:
        tuned = tuner.averaged()
        found = []
        for share in shares:
            model = mixed(served.checkpoint.model, tuned, share)
            predictor = Predictor(model, tuner.registry, device=self._device)
            scores = validate(predictor, material.validation, material.examples, settings=self._settings)
            found.append(Candidate(model, share, scores, judge(before, scores)))
            logger.info("With %.0f %% of the new weights: %s", 100 * share, found[-1].verdict)
        return found

    def _publish(self, served: Served, tuner: Finetuner, chosen: Candidate, facts: dict[str, Any]) -> int | None:
        if not chosen.verdict.passed:
            return None
        return self._versions.publish(chosen.model, tuner.registry, note=facts, parent=served.number)

    @staticmethod
    def _facts(
        served: Served, material: Material, tuner: Finetuner, before: Sequence[Score], chosen: Candidate
    ) -> dict[str, Any]:
        """What is told of a version: where it comes from, what it was trained on, what it can do."""
        return {
            "trained_on": [submission.image_id for submission in material.used],
            "labels": [submission.key for submission in material.used],
            "skipped": material.skipped,
            "parent": served.number,
            "steps": tuner.step,
            "minutes": round(tuner.seconds / 60, 2),
            "share_of_new_weights": chosen.share,
            "dice": round(chosen.verdict.after, 4),
            "metrics_before": _rounded(before),
            "metrics": _rounded(chosen.scores),
            "gate": str(chosen.verdict),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        }


def follow(tuner: Finetuner, progress: Progress) -> None:
    """Run the training to the end of its budget as an ignite engine, and tell its progress."""
    steps = tuner.steps()

    def take(engine: Engine, _: int) -> dict[str, float] | None:
        record = next(steps, None)
        if record is None:
            engine.terminate()
        return record

    engine = Engine(take)

    def tell() -> None:
        means = {name: float(np.mean(values)) for name, values in tuner.recent.items() if values}
        progress.advance(tuner.share, means)

    engine.add_event_handler(Events.ITERATION_COMPLETED, tell)
    # ignite counts epochs, the budget is time: one endless epoch that the last step ends.
    engine.run(max_epochs=1, epoch_length=1 << 40)


def _mean(scores: Sequence[Score]) -> float:
    return float(np.mean(list(mean_dice(scores).values())))


def _rounded(scores: Sequence[Score]) -> dict[str, float]:
    return {f"{mode} {structure}": round(value, 4) for (mode, structure), value in sorted(mean_dice(scores).items())}
