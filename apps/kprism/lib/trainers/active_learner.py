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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ignite.engine import Engine, Events
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from kprism_model.checkpoint import Checkpoint
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.training.distributed import Workers
from kprism_model.training.finetune import FinetunePlan, Finetuner
from kprism_model.training.validation import ValidationSettings, validate
from lib.files import is_locked, locked
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import FAILED, FINISHED, TrainingLog
from lib.learning.versions import Served, Versions
from lib.options import Option, read_options
from lib.trainers.candidates import SHARES, Candidate, best_candidate, facts_of, overall, rounded
from lib.trainers.finetune_dataset import FinetuneDataset, gather
from lib.trainers.processes import EACH_GPU, agree, count_of, share, spread_out
from lib.trainers.progress import Progress
from lib.trainers.report_page import write_report
from lib.trainers.tracking import track
from lib.trainers.unpublished import Unpublished

logger = logging.getLogger(__name__)

MINUTES = Option(10.0, low=0.01, high=1440.0)
"""How long a training may last: the default, and the limits of what a client may ask for."""


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
        self,
        intake: SubmissionService,
        versions: Versions,
        folder: Path,
        device: str,
        *,
        minutes: float = float(MINUTES.default),
        processes: int = EACH_GPU,
        tracking_uri: str = "",
    ) -> None:
        super().__init__("Learns from the submitted labels and publishes weights that are no worse on validation cases")
        self._intake, self._versions, self._folder, self._device = intake, versions, folder, device
        self._processes, self._tracking_uri = processes, tracking_uri
        self._settings = ValidationSettings()
        self._options = {**self.options, "max_minutes": replace(MINUTES, default=minutes)}
        self._unpublished = Unpublished(folder)
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
        spread_out(count_of(self._processes, self._device), request)
        workers = Workers.join(self._device)
        self._folder.mkdir(parents=True, exist_ok=True)
        if workers.rank:
            self._assist(options, workers)
            return {}
        progress = Progress(self._folder)
        with locked(self._folder):
            submissions = share(workers, self._intake.ledger.submissions())
            self.log.begin([submission.key for submission in submissions])
            progress.begin("reading labels", found=len(submissions))
            try:
                self._train(options, submissions, progress, workers)
            except Exception as error:
                self.log.end(FAILED)
                progress.end(f"nothing was published: {error}")
                raise
            self.log.end(FINISHED)
        return self.stats()

    def _assist(self, options: Mapping[str, Any], workers: Workers) -> None:
        """The part of every process but the first: the same training on other batches of the same material."""
        device = str(workers.device(self._device))
        submissions: list[Submission] = share(workers, None)
        served = self._versions.load(device=device)
        start = self._unpublished.start(served.checkpoint, device=device)
        run, identity = self._run_folder(start, submissions, options)
        native = served.checkpoint.model.config.native_size
        slices = run / f"slices-{workers.rank}"
        material = gather(submissions, self._intake.load, slices, size=native, settings=self._settings)
        agree(workers, f"{run.name} {len(material.used)}")
        tuner = self._tuner(served, start, material, _plan(options), run, identity, {}, workers)
        workers.wait()
        for _ in tuner.steps():
            pass
        workers.leave()

    def _train(
        self, options: dict[str, Any], submissions: Sequence[Submission], progress: Progress, workers: Workers
    ) -> None:
        served = self._versions.load(device=self._device)
        start = self._unpublished.start(served.checkpoint, device=self._device)
        run, identity = self._run_folder(start, submissions, options)
        self._forget_other_runs(run)
        native = served.checkpoint.model.config.native_size
        material = gather(submissions, self._intake.load, run / "slices", size=native, settings=self._settings)
        progress.tell("validating the serving weights", used=len(material.used), skipped=material.skipped)
        predictor = Predictor(served.checkpoint.model, served.checkpoint.registry, device=self._device)
        before = validate(predictor, material.validation, material.examples, settings=self._settings)
        progress.tell("training", best_metric=round(overall(before), 4))
        starts = material.starts(predictor, start.registry)
        tuner = self._tuner(served, start, material, _plan(options), run, identity, starts, workers)
        agree(workers, f"{run.name} {len(material.used)}")
        workers.wait()  # until all have read what an earlier attempt has left
        follow(tuner, progress)
        workers.leave()
        progress.tell("validating the new weights")
        shares = SHARES if options["mix"] else (1.0,)
        chosen = best_candidate(tuner, material, before, shares, device=self._device, settings=self._settings)
        facts = facts_of(served, start, material, tuner, before, chosen)
        progress.tell("publishing")
        number = self._publish(served, tuner, chosen, facts)
        outcome = f"published as version {number}" if number else "not published; the serving weights stay"
        message = "; ".join(part for part in (f"{outcome}: {chosen.verdict}", material.note) if part)
        report = write_report(
            self._folder / "reports", number, message, before, chosen.scores, material, run / "log.jsonl", facts
        )
        untold = track(self._tracking_uri, options, facts, run / "log.jsonl", report)
        message = "; ".join(part for part in (message, untold) if part)
        progress.end(
            message,
            best_metric=round(max(chosen.verdict.before, chosen.verdict.after if number else 0.0), 4),
            eval=rounded(chosen.scores),
            published=number,
            report=str(report),
        )
        logger.info("%s", message)
        shutil.rmtree(run, ignore_errors=True)

    def _run_folder(
        self, start: Checkpoint, submissions: Sequence[Submission], options: Mapping[str, Any]
    ) -> tuple[Path, dict[str, Any]]:
        """The folder of this run, with the state of an earlier, killed attempt at the same; what identifies it."""
        identity = {
            "start": start.weights_version,
            "cases": sorted(submission.key for submission in submissions),
            "options": dict(options),
        }
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return self._folder / "runs" / name, identity

    @staticmethod
    def _forget_other_runs(run: Path) -> None:
        run.parent.mkdir(parents=True, exist_ok=True)
        for old in run.parent.iterdir():
            if old.name != run.name:
                shutil.rmtree(old, ignore_errors=True)

    def _tuner(
        self,
        served: Served,
        start: Checkpoint,
        material: FinetuneDataset,
        plan: FinetunePlan,
        run: Path,
        identity: Mapping[str, Any],
        starts: Mapping[str, References],
        workers: Workers,
    ) -> Finetuner:
        """The trainer, where an earlier attempt at the same run left it; from the start if that is damaged."""

        def make() -> Finetuner:
            return Finetuner(
                start,
                material.store,
                plan,
                run,
                anchor=self._versions.load_anchor(served, device=self._device),
                starts=starts,
                identity=identity,
                device=self._device,
                workers=workers,
            )

        try:
            return make()
        except ValueError as error:
            if not (run / "state.json").exists():
                raise
            logger.warning("The interrupted training cannot be resumed and starts anew: %s", error)
            (run / "state.json").unlink()
            return make()

    def _publish(self, served: Served, tuner: Finetuner, chosen: Candidate, facts: dict[str, Any]) -> int | None:
        if chosen.verdict.passed:
            number = self._versions.publish(chosen.model, tuner.registry, note=facts, parent=served.number)
            self._unpublished.forget()
            return number
        if chosen.verdict.after > chosen.verdict.before:
            self._unpublished.keep(chosen.model, tuner.registry, served.checkpoint)
        else:
            self._unpublished.forget()
        return None


def _plan(options: Mapping[str, Any]) -> FinetunePlan:
    """The plan that a request's options describe."""
    without: dict[str, Any] = {name: 0.0 for name in ("distillation", "pull") if not options[name]}
    return FinetunePlan(
        minutes=options["max_minutes"],
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        **without,
    )


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
