# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's train task: fine-tune on the submitted labels, validate, publish, report.

MONAI Label runs it in a process of its own, so a training never delays an answer, and kills that process to stop it.
So everything on the disk is complete at any moment: the state of the run, the versions, the progress.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from kprism_model.predictor import Predictor
from kprism_model.training.distributed import Workers
from kprism_model.training.validation import ValidationSettings, validate
from lib.files import is_locked, locked
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import FAILED, FINISHED, TrainingLog
from lib.learning.versions import Versions
from lib.options import Option, read_options
from lib.routes import MODES
from lib.trainers.candidates import NEW_WEIGHT_SHARES, Candidate, best_candidate, overall, rounded, version_metadata
from lib.trainers.finetune_run import FinetuneRun
from lib.trainers.processes import ONE_PER_GPU, broadcast, check_same_inputs, process_count, relaunch_distributed
from lib.trainers.progress import Progress
from lib.trainers.report_page import TrainingReport, write_report
from lib.trainers.tracking import track
from lib.trainers.training_loop import run_training
from lib.trainers.unpublished_weights import UnpublishedWeights

logger = logging.getLogger(__name__)

TRAINING_MINUTES = Option(10.0, low=0.01, high=1440.0)
"""How long a training may last: the default, and the limits of what a client may ask for."""


class ActiveLearner(TrainTask):  # type: ignore[misc]
    """Options: `max_minutes` of training; `distillation`, `pull` and `mix` keep the network from forgetting.

    `folder` holds the state of the training, its log, progress and reports. `processes`: 0 for one on each GPU.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "max_minutes": TRAINING_MINUTES,
        "batch_size": Option(8, low=2, high=256),
        "learning_rate": Option(3e-4, low=1e-7, high=1.0),
        "distillation": Option(True),
        "pull": Option(True),
        "mix": Option(True),
    }

    def __init__(
        self,
        submissions: SubmissionService,
        versions: Versions,
        folder: Path,
        device: str,
        *,
        minutes: float = float(TRAINING_MINUTES.default),
        processes: int = ONE_PER_GPU,
        tracking_uri: str = "",
    ) -> None:
        super().__init__("Learns from the submitted labels and publishes weights that are no worse on validation cases")
        self._submissions, self._versions, self._folder, self._device = submissions, versions, folder, device
        self._processes, self._tracking_uri = processes, tracking_uri
        self._settings = ValidationSettings()
        self._options = {**self.options, "max_minutes": replace(TRAINING_MINUTES, default=minutes)}
        self._unpublished = UnpublishedWeights(folder)
        self.log = TrainingLog(folder)

    def config(self) -> dict[str, Any]:
        """The options as both viewers show them and send them back."""
        return {name: option.shown() for name, option in self._options.items()}

    def check(self, request: Mapping[str, Any]) -> None:
        """RequestError for options with wrong values."""
        read_options(self._options, request)

    def stats(self) -> dict[str, Any]:
        """Progress as both viewers read it; the message says so if the training was killed."""
        stats = Progress.read(self._folder)
        if stats and "total_time" not in stats and not is_locked(self._folder):
            stats["message"] = f"it was cut off while {stats['message']}"
        return stats

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train; returns the final `stats`."""
        options = read_options(self._options, request)
        relaunch_distributed(process_count(self._processes, self._device), request)
        workers = Workers.join(self._device)
        self._folder.mkdir(parents=True, exist_ok=True)
        if workers.rank:
            self._train_as_worker(options, workers)
            return {}
        progress = Progress(self._folder)
        with locked(self._folder):
            submissions = broadcast(workers, self._submissions.store.submissions())
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

    def _train_as_worker(self, options: Mapping[str, Any], workers: Workers) -> None:
        """In every process but the first: the same training on other batches of the same data set."""
        submissions: list[Submission] = broadcast(workers, None)
        run = self._new_run(submissions, options, workers)
        dataset = run.build_dataset(self._submissions.load, self._settings)
        check_same_inputs(workers, f"{run.folder.name} {len(dataset.used)}")
        tuner = run.finetuner(dataset, {})
        workers.wait()
        for _ in tuner.steps():
            pass
        workers.leave()

    def _train(
        self, options: dict[str, Any], submissions: Sequence[Submission], progress: Progress, workers: Workers
    ) -> None:
        """In the first process: train, and do all else."""
        run = self._new_run(submissions, options, workers)
        run.remove_other_runs()
        dataset = run.build_dataset(self._submissions.load, self._settings)
        progress.update("validating the serving weights", used=len(dataset.used), skipped=dataset.skipped)
        served = run.served.checkpoint
        predictor = Predictor(served.model, served.registry, device=self._device)
        before = validate(predictor, dataset.validation, dataset.reference_cases, settings=self._settings)
        progress.update("training", best_metric=round(overall(before), 4))
        tuner = run.finetuner(dataset, dataset.class_references(predictor, run.start.registry))
        check_same_inputs(workers, f"{run.folder.name} {len(dataset.used)}")
        workers.wait()  # until all processes have read the state of an earlier attempt
        run_training(tuner, progress)
        workers.leave()
        progress.update("validating the new weights")
        shares = NEW_WEIGHT_SHARES if options["mix"] else (1.0,)
        chosen = best_candidate(tuner, dataset, before, shares, device=self._device, settings=self._settings)
        metadata = version_metadata(run.served, run.start, dataset, tuner, before, chosen)
        progress.update("publishing")
        number = self._publish(run, chosen, metadata)
        report = TrainingReport(
            number, _outcome(number, chosen, dataset.warning), before, chosen.scores, dataset, metadata
        )
        self._report(report, run, options, chosen, progress)
        run.remove()

    def _new_run(self, submissions: Sequence[Submission], options: Mapping[str, Any], workers: Workers) -> FinetuneRun:
        return FinetuneRun(self._versions, self._folder, submissions, options, device=self._device, workers=workers)

    def _publish(self, run: FinetuneRun, chosen: Candidate, metadata: dict[str, Any]) -> int | None:
        """The number of the new version, or None if the candidate did not pass the gate."""
        verdict = chosen.verdict
        if verdict.passed:
            routes = {mode: dict.fromkeys(chosen.registry.names) for mode in MODES}
            number = self._versions.publish(
                chosen.model, chosen.registry, metadata=metadata, routes=routes, parent=run.served.number
            )
            self._unpublished.remove()
            return number
        if verdict.after > verdict.before:
            self._unpublished.save(chosen.model, chosen.registry, run.served.checkpoint)
        else:
            self._unpublished.remove()
        return None

    def _report(
        self,
        report: TrainingReport,
        run: FinetuneRun,
        options: Mapping[str, Any],
        chosen: Candidate,
        progress: Progress,
    ) -> None:
        """Write the report page, log to MLflow, and end the progress."""
        page = write_report(self._folder / "reports", report, run.log)
        tracking_error = track(self._tracking_uri, options, report.metadata, run.log, page)
        message = "; ".join(part for part in (report.message, tracking_error) if part)
        best = max(chosen.verdict.before, chosen.verdict.after if report.number else 0.0)
        progress.end(
            message,
            best_metric=round(best, 4),
            eval=rounded(chosen.scores),
            published=report.number,
            report=str(page),
        )
        logger.info("%s", message)


def _outcome(number: int | None, chosen: Candidate, warning: str) -> str:
    """The message about the end of a training."""
    outcome = f"published as version {number}" if number else "not published; the serving weights stay"
    return "; ".join(part for part in (f"{outcome}: {chosen.verdict}", warning) if part)
