# SPDX-License-Identifier: Apache-2.0
"""One training of a site: the fine-tunings that it consists of, and the folder from which a killed one is resumed.

There is one for each fold of cross-validation, which never sees the patients of its fold and says how good such weights
are. The mean of all has learned from every patient. Each goes on from the weights of the last training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kprism_model.checkpoint import Checkpoint
from kprism_model.predictor import Predictor
from kprism_model.training.distributed import Workers
from kprism_model.training.finetune import FinetunePlan, Finetuner
from kprism_model.training.step_log import LOG_NAME
from kprism_model.training.validation import ValidationSettings
from lib.learning.submission_store import Submission
from lib.learning.versions import Versions
from lib.trainers.case_cache import ReducedCase
from lib.trainers.finetune_dataset import FinetuneDataset, build_dataset
from lib.trainers.judging import seen_patients
from lib.trainers.working_weights import FINAL, WorkingWeights, fold_name

logger = logging.getLogger(__name__)

SHORTEST_MINUTES = 0.005


@dataclass(frozen=True)
class Part:
    """A fine-tuning of the run: its name, the fold that it never sees (None: it sees all patients), its minutes."""

    name: str
    fold: int | None
    minutes: float


class FinetuneRun:
    """Fine-tunings of what serves on `submissions`; their files lie in a folder of their own in `folder`/runs.

    The folder's name follows from the version that serves, the labels and the options, so that the same training finds
    the state of an earlier attempt.
    """

    def __init__(
        self,
        versions: Versions,
        folder: Path,
        submissions: Sequence[Submission],
        options: Mapping[str, Any],
        *,
        device: str,
        workers: Workers,
    ) -> None:
        self._submissions, self._options = submissions, options
        self.device, self._workers = str(workers.device(device)), workers
        self.chosen = versions.stamp()  # before loading, so that a version chosen meanwhile is noticed
        self.served = versions.load(device=self.device)
        self.working = WorkingWeights(
            folder / "working", base=self.served.shipped.weights_version, serving=self.served.number
        )
        self._identity = {
            "serving": self.served.number,
            "shipped": self.served.shipped.weights_version,
            "cases": sorted(submission.key for submission in submissions),
            "options": dict(options),
        }
        self.seen: dict[str, set[str]] = {}  # the patients that the start of each fine-tuning had learned from
        name = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / "runs" / name

    def kept_log(self, dataset: FinetuneDataset) -> Path:
        """The file with a JSON record of each step of the first fine-tuning, after its weights were kept."""
        return self.working.folder / self.parts(dataset)[0].name / LOG_NAME

    def remove_other_runs(self) -> None:
        """Delete what earlier trainings that are not resumed have left."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.iterdir():
            if other.name != self.folder.name:
                shutil.rmtree(other, ignore_errors=True)
        for file in self.folder.parent.parent.glob("unpublished.*"):  # of releases before cross-validation
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def build_dataset(self, load: Callable[[Submission], ReducedCase], settings: ValidationSettings) -> FinetuneDataset:
        """Read the labels; each process has a copy of its own."""
        rank = self._workers.rank
        folder = self.folder / (f"slices-{rank}" if rank else "slices")
        shipped = self.served.shipped
        known = (*shipped.registry.names, *self.served.routes.structures())
        size = shipped.model.config.native_size
        return build_dataset(self._submissions, load, folder, size=size, settings=settings, known=known)

    def parts(self, dataset: FinetuneDataset) -> list[Part]:
        """The fine-tunings in their order: one for each fold, or one alone if all patients are in one fold."""
        minutes, folds = self._options["max_minutes"], dataset.folds
        if not folds:
            return [Part(FINAL, None, minutes)]
        return [Part(fold_name(fold), fold, max(SHORTEST_MINUTES, minutes / len(folds))) for fold in folds]

    def finetuners(self, dataset: FinetuneDataset) -> Iterator[tuple[Part, Finetuner]]:
        """Each fine-tuning, in the state that an earlier attempt has saved; from the start if that is damaged."""
        for part in self.parts(dataset):
            try:
                yield part, self._finetuner(part, dataset)
            except ValueError as error:
                state = self.folder / part.name / "state.json"
                if not state.exists():
                    raise
                logger.warning("The interrupted training cannot be resumed and starts again: %s", error)
                state.unlink()
                yield part, self._finetuner(part, dataset)

    def _finetuner(self, part: Part, dataset: FinetuneDataset) -> Finetuner:
        unseen = [] if part.fold is None else dataset.patients_in(part.fold)
        start, end = self.working.start(part.name, unseen, self._default(unseen), device=self.device)
        metadata = start.metadata
        self.seen[part.name] = {*metadata.get("patients", ()), *metadata.get("note", {}).get("patients", ())}
        predictor = Predictor(start.model, start.registry, device=self.device)
        return Finetuner(
            start,
            dataset.store,
            self._plan(part),
            self.folder / part.name,
            without=unseen,
            weights=dataset.weights,
            clicks=dataset.clicks,
            class_references=dataset.class_references(predictor, start.registry, unseen),
            continued=end,
            identity={**self._identity, "start": start.weights_version},
            device=self.device,
            workers=self._workers,
        )

    def _default(self, unseen: Sequence[str]) -> Checkpoint:
        """What serves: the version's own weights if they never saw these patients, else the shipped ones."""
        own = self.served.parts.get(self.served.number)
        if own is None:
            return self.served.shipped
        seen = seen_patients(own)
        return own if seen is not None and not set(seen) & set(unseen) else self.served.shipped

    def _plan(self, part: Part) -> FinetunePlan:
        return FinetunePlan(
            minutes=part.minutes,
            batch_size=self._options["batch_size"],
            learning_rate=self._options["learning_rate"],
        )
