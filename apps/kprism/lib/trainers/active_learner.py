# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's train task: fine-tune on the submitted labels, judge, publish, report.

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

from kprism_model.training.distributed import Workers
from lib.files import is_locked, locked
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import FAILED, FINISHED, TrainingLog
from lib.learning.versions import Versions
from lib.options import Option, read_options
from lib.trainers.case_cache import CaseCache
from lib.trainers.finetune_dataset import FinetuneDataset
from lib.trainers.finetune_run import FinetuneRun
from lib.trainers.judged_scores import SETTINGS
from lib.trainers.judging import Judge
from lib.trainers.processes import (
    ONE_PER_GPU,
    broadcast,
    check_same_inputs,
    depend_on_server,
    process_count,
    relaunch_distributed,
)
from lib.trainers.progress import Progress
from lib.trainers.publication import Training, publish
from lib.trainers.report_page import write_report
from lib.trainers.tracking import track
from lib.trainers.training_loop import run_training

logger = logging.getLogger(__name__)

TRAINING_MINUTES = Option(1.5, low=0.01, high=1440.0)
"""How long a training may last: the default, and the limits of what a client may ask for."""

GPU_BATCH_SIZE = 8
"""Images in a step on a GPU. On a CPU a step of two is best: there are more steps in the same time."""

THOROUGH_FACTOR = 3
"""How many times longer a thorough training lasts."""


class ActiveLearner(TrainTask):  # type: ignore[misc]
    """Options: `max_minutes` of training; `in_context`: whether that mode is judged too, which takes longer.

    `folder` holds the state of the training, its log, progress and reports. `processes`: 0 for one on each GPU.
    """

    options: ClassVar[Mapping[str, Option]] = {
        "max_minutes": TRAINING_MINUTES,
        "batch_size": Option(2, low=2, high=256),
        "learning_rate": Option(5e-4, low=1e-7, high=1.0),
        "in_context": Option(True),
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
        super().__init__("Learns from the submitted labels; each structure is answered by what knows it best")
        self._submissions, self._versions, self._folder, self._device = submissions, versions, folder, device
        self._processes, self._tracking_uri = processes, tracking_uri
        self._options = {**self.options, "max_minutes": replace(TRAINING_MINUTES, default=minutes)}
        if device != "cpu":
            self._options["batch_size"] = replace(self.options["batch_size"], default=GPU_BATCH_SIZE)
        self._cases = CaseCache(folder / "cases", submissions.load, submissions.files, SETTINGS)
        self.log = TrainingLog(folder)

    def request(self, thorough: bool) -> dict[str, Any]:
        """The options of a training that starts by itself."""
        minutes = float(self._options["max_minutes"].default)
        longest = float(TRAINING_MINUTES.high)
        return {"max_minutes": min(longest, minutes * (THOROUGH_FACTOR if thorough else 1)), "in_context": thorough}

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
        depend_on_server()
        workers = Workers.join(self._device)
        self._folder.mkdir(parents=True, exist_ok=True)
        if workers.rank:
            self._train_as_worker(options, workers)
            return {}
        progress = Progress(self._folder)
        with locked(self._folder):
            submissions = broadcast(workers, self.log.resumed(self._submissions.store.submissions(), options))
            self.log.begin([submission.key for submission in submissions], options)
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
        dataset = run.build_dataset(self._cases.get, SETTINGS)
        check_same_inputs(workers, f"{run.folder.name} {len(dataset.used)}")
        for _, tuner in run.finetuners(dataset):
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
        dataset = run.build_dataset(self._cases.get, SETTINGS)
        self._cases.keep(dataset.used)
        progress.update("training", used=len(dataset.used), skipped=dataset.skipped)
        check_same_inputs(workers, f"{run.folder.name} {len(dataset.used)}")
        training = self._fit(run, dataset, progress, workers)
        workers.leave()
        judge = Judge(
            dataset,
            run.served,
            self._folder / "scores.json",
            run.device,
            in_context=options["in_context"],
            report=progress.update,
        )
        outcome = publish(training, judge, run, self._versions, progress)
        log = run.kept_log(dataset)
        page = write_report(self._folder / "reports", outcome.report, log)
        tracking_error = track(self._tracking_uri, options, outcome.metadata, log, page)
        message = "; ".join(part for part in (outcome.message, tracking_error) if part)
        progress.end(
            message,
            best_metric=round(outcome.best, 4),
            eval=outcome.metadata["metrics"],
            published=outcome.number,
            report=str(page),
        )
        logger.info("%s", message)
        run.remove()

    def _fit(self, run: FinetuneRun, dataset: FinetuneDataset, progress: Progress, workers: Workers) -> Training:
        """All fine-tunings of the run, one after the other."""
        training = Training(dataset)
        parts = run.parts(dataset)
        total, before = sum(part.minutes for part in parts), 0.0
        for part, tuner in run.finetuners(dataset):
            workers.wait()  # until all processes have read the state of an earlier attempt
            run_training(tuner, progress, offset=before / total, share=part.minutes / total)
            before += part.minutes
            training.add(part, tuner)
        return training

    def _new_run(self, submissions: Sequence[Submission], options: Mapping[str, Any], workers: Workers) -> FinetuneRun:
        return FinetuneRun(self._versions, self._folder, submissions, options, device=self._device, workers=workers)
