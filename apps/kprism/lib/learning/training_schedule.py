# SPDX-License-Identifier: Apache-2.0
"""When to train: after a number of new labels, one training at a time, and again after a training that was killed.

`last.json` says which labels the last training used and how it ended. Labels that are submitted during a training count
for the next one, so many submissions in a row start one training, not many.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib.files import read_json, write_json
from lib.learning.submission_store import Submission, new_since

logger = logging.getLogger(__name__)

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
"""States of a training in `last.json`."""

NEW_LABELS_PER_TRAINING = 1
"""New labels that start a training, by default."""

MIN_LABELS = 2
"""A training needs this many labels: one is the reference of the other."""

LABELS_PER_THOROUGH_TRAINING = 10
"""New labels after which a training is thorough: it lasts longer and judges in-context segmentation too."""

MAX_ATTEMPTS = 3
"""A training that ends without a result (killed, power cut) is started this many times."""

_STOPPED_BY_USER = "STOPPED"  # MONAI Label's status; a training that was killed has the status ERROR


class TrainingLog:
    """`last.json` in the trainer's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "last.json"

    def read(self) -> dict[str, Any]:
        """The last training: `cases` (keys), `state`, `attempts`, and `thorough`, the number of labels of the last
        thorough one; empty if there was none.
        """
        try:
            return read_json(self._path) or {}
        except ValueError as error:
            logger.warning("%s", error)
            return {}

    def mark_as_seen(self, cases: Sequence[str]) -> None:
        """Do not count these labels as new ones. The next training uses them, but they do not start one."""
        last = {"cases": [], "state": FINISHED, "attempts": 0, **self.read()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {**last, "cases": [*last["cases"], *cases]})

    def begin(self, cases: Sequence[str], *, thorough: bool = True) -> None:
        """Record that a training on these cases has started. The same cases again are another attempt."""
        last = self.read()
        again = last.get("state") == RUNNING and last.get("cases") == list(cases)
        content = {
            "cases": list(cases),
            "state": RUNNING,
            "attempts": int(last.get("attempts", 0)) + 1 if again else 1,
            "thorough": len(cases) if thorough else int(last.get("thorough", 0)),
        }
        write_json(self._path, content)

    def end(self, state: str) -> None:
        """Record how the training has ended."""
        last = self.read()
        if last:
            write_json(self._path, {**last, "state": state})


class TrainingSchedule:
    """Starts a training when one is due; one thread of the server calls `poll` periodically.

    `start` starts a training, thorough or not. `status` is MONAI Label's status of the newest one (None if there was
    none since the server started). `every` is the number of new labels that start a training (0: only by hand).
    """

    def __init__(
        self,
        log: TrainingLog,
        submissions: Callable[[], Sequence[Submission]],
        *,
        start: Callable[[bool], object],
        status: Callable[[], str | None],
        every: int = NEW_LABELS_PER_TRAINING,
    ) -> None:
        if every < 0:
            raise ValueError(f"the number of new labels that start a training must be 0 or more, got {every}")
        self._log, self._submissions, self._start, self._status, self._every = log, submissions, start, status, every

    def poll(self) -> bool:
        """Start a training if one is due and none is running; returns whether it did."""
        status = self._status()
        if status in ("SUBMITTED", "RUNNING"):
            return False
        last = self._log.read()
        if last.get("state") == RUNNING and status == _STOPPED_BY_USER:
            self._log.end(STOPPED)
            last = self._log.read()
        if not self.is_due(last):
            return False
        logger.info("A training is due: %d new labels", self.pending())
        self._start(self.is_thorough(last))
        return True

    def pending(self) -> int:
        """The number of labels that the last training did not use."""
        return len(new_since(self._submissions(), self._log.read().get("cases", ())))

    def is_due(self, last: dict[str, Any]) -> bool:
        """Whether there are enough new labels, or the last training was killed."""
        if not self._every:
            return False
        if last.get("state") == RUNNING and int(last.get("attempts", 0)) < MAX_ATTEMPTS:
            return True
        submissions = self._submissions()
        return len(submissions) >= MIN_LABELS and len(new_since(submissions, last.get("cases", ()))) >= self._every

    def is_thorough(self, last: dict[str, Any]) -> bool:
        """Whether the next training is a thorough one."""
        return len(self._submissions()) - int(last.get("thorough", 0)) >= LABELS_PER_THOROUGH_TRAINING
