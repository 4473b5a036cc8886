# SPDX-License-Identifier: Apache-2.0
"""One fine-tuning: its start weights, labels and options, and the folder from which a killed one is resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kprism_model.data.partial import AnnotatedCase
from kprism_model.network.references import References
from kprism_model.training.distributed import Workers
from kprism_model.training.finetune import FinetunePlan, Finetuner
from kprism_model.training.validation import ValidationSettings
from lib.learning.submission_store import Submission
from lib.learning.versions import Versions
from lib.trainers.finetune_dataset import FinetuneDataset, build_dataset
from lib.trainers.unpublished_weights import UnpublishedWeights

logger = logging.getLogger(__name__)


class FinetuneRun:
    """Fine-tuning of the serving version on `submissions`; its files lie in a folder of its own in `folder`/runs.

    The folder's name follows from the start weights, the labels and the options, so that the same training finds the
    state of an earlier attempt. `served` is the serving version, `start` the weights that the training starts from.
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
        self._versions, self._submissions, self._options = versions, submissions, options
        self._device, self._workers = str(workers.device(device)), workers
        self.served = versions.load(device=self._device)
        self.start = UnpublishedWeights(folder).start(self.served.checkpoint, device=self._device)
        self._identity = {
            "start": self.start.weights_version,
            "cases": sorted(submission.key for submission in submissions),
            "options": dict(options),
        }
        name = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / "runs" / name

    @property
    def log(self) -> Path:
        """The file with a JSON record of each training step."""
        return self.folder / "log.jsonl"

    def remove_other_runs(self) -> None:
        """Delete what earlier trainings that are not resumed have left."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.iterdir():
            if other.name != self.folder.name:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def build_dataset(
        self, load: Callable[[Submission], AnnotatedCase], settings: ValidationSettings
    ) -> FinetuneDataset:
        """Read the labels; each process has a copy of its own."""
        rank = self._workers.rank
        folder = self.folder / (f"slices-{rank}" if rank else "slices")
        native = self.served.checkpoint.model.config.native_size
        return build_dataset(self._submissions, load, folder, size=native, settings=settings)

    def finetuner(self, dataset: FinetuneDataset, class_references: Mapping[str, References]) -> Finetuner:
        """The trainer, in the state that an earlier attempt has saved; from the start if that is damaged."""

        def create() -> Finetuner:
            return Finetuner(
                self.start,
                dataset.store,
                _plan(self._options),
                self.folder,
                anchor=self._versions.load_anchor(self.served, device=self._device),
                class_references=class_references,
                identity=self._identity,
                device=self._device,
                workers=self._workers,
            )

        try:
            return create()
        except ValueError as error:
            state = self.folder / "state.json"
            if not state.exists():
                raise
            logger.warning("The interrupted training cannot be resumed and starts again: %s", error)
            state.unlink()
            return create()


def _plan(options: Mapping[str, Any]) -> FinetunePlan:
    """The plan for a request's options."""
    without: dict[str, Any] = {name: 0.0 for name in ("distillation", "pull") if not options[name]}
    return FinetunePlan(
        minutes=options["max_minutes"],
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        **without,
    )
