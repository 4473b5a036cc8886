# SPDX-License-Identifier: Apache-2.0
"""When to train: after a number of new labels, one training at a time, and on after a training that was killed.

`last.json` says which labels the last training used and how it ended. Labels that are submitted during a training count
for the next one, so many submissions in a row start one training, not many.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
"""A training that ends without a result (killed, power cut) or before it has begun is started this many times."""

_STOPPED_BY_USER = "STOPPED"  # MONAI Label's status; a training that was killed has the status ERROR


class TrainingLog:
    """`last.json` in the trainer's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "last.json"

    def read(self) -> dict[str, Any]:
        """The last training: `cases` (keys), `options`, `state`, `attempts`, and `thorough`, the number of labels of
        the last thorough one that was finished; empty if there was none.
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

    def resumed(self, submissions: Sequence[Submission], options: Mapping[str, Any]) -> list[Submission]:
        """The submissions of the training with these options that was killed, all of them if there is none.

        Labels that came later count for the next one: with them it would be another training, from the start.
        """
        last = self.read()
        if last.get("state") != RUNNING or last.get("options") != dict(options):
            return list(submissions)
        cases = set(last["cases"])
        known = [submission for submission in submissions if submission.key in cases]
        return known if len(known) == len(cases) else list(submissions)

    def begin(self, cases: Sequence[str], options: Mapping[str, Any]) -> None:
        """Record that a training on these cases has started. The same cases again are another attempt."""
        last = self.read()
        again = last.get("state") == RUNNING and last.get("cases") == list(cases)
        content = {
            "cases": list(cases),
            "state": RUNNING,
            "attempts": int(last.get("attempts", 0)) + 1 if again else 1,
            "thorough": int(last.get("thorough", 0)),
            "options": dict(options),
        }
        write_json(self._path, content)

    def end(self, state: str) -> None:
        """Record how the training has ended."""
        last = self.read()
        if not last:
            return
        if state == FINISHED and last.get("options", {}).get("in_context"):
            last["thorough"] = len(last["cases"])
        write_json(self._path, {**last, "state": state})


class TrainingSchedule:
    """Starts a training when one is due; one thread of the server calls `poll` periodically.

    `start` starts a training with options, `options` gives those of a thorough one or of a short one. `status` is MONAI
    Label's status of the newest one (None if there was none since the server started). `every` is the number of new
    labels that start a training (0: only by hand).
    """

    def __init__(
        self,
        log: TrainingLog,
        submissions: Callable[[], Sequence[Submission]],
        *,
        start: Callable[[Mapping[str, Any]], object],
        options: Callable[[bool], Mapping[str, Any]],
        status: Callable[[], str | None],
        every: int = NEW_LABELS_PER_TRAINING,
    ) -> None:
        if every < 0:
            raise ValueError(f"the number of new labels that start a training must be 0 or more, got {every}")
        self._log, self._submissions, self._start, self._options = log, submissions, start, options
        self._status, self._every = status, every
        self._before: dict[str, Any] | None = None  # the log when a training was started that has not ended yet
        self._not_begun = 0  # trainings in a row that ended before they had begun

    def poll(self) -> bool:
        """Start a training if one is due and none is running; returns whether it did."""
        status = self._status()
        if status in ("SUBMITTED", "RUNNING"):
            return False
        last = self._after_end(status)
        if not self.is_due(last):
            return False
        interrupted = last.get("state") == RUNNING
        logger.info("A training is %s: %d new labels", "interrupted" if interrupted else "due", self.pending())
        self._before = last
        self._start(last.get("options", {}) if interrupted else self._options(self.is_thorough(last)))
        return True

    def _after_end(self, status: str | None) -> dict[str, Any]:
        """The log, with the end of the newest training if that could not record it itself."""
        last, before, self._before = self._log.read(), self._before, None
        begun = last != before
        self._not_begun = 0 if begun else self._not_begun + 1
        running, stopped = last.get("state") == RUNNING, status == _STOPPED_BY_USER
        given_up = self._not_begun >= MAX_ATTEMPTS or (running and int(last.get("attempts", 0)) >= MAX_ATTEMPTS)
        if not (stopped or given_up):
            return last
        if running:
            self._log.end(STOPPED if stopped else FAILED)
        if not begun:
            logger.warning("The training ended before it had begun; new labels start the next one")
            self._log.mark_as_seen([entry.key for entry in new_since(self._submissions(), last.get("cases", ()))])
            self._not_begun = 0
        return self._log.read()

    def pending(self) -> int:
        """The number of labels that the last training did not use."""
        return len(new_since(self._submissions(), self._log.read().get("cases", ())))

    def is_due(self, last: dict[str, Any]) -> bool:
        """Whether there are enough new labels, or the last training was killed."""
        if last.get("state") == RUNNING:
            return True
        if not self._every:
            return False
        submissions = self._submissions()
        return len(submissions) >= MIN_LABELS and len(new_since(submissions, last.get("cases", ()))) >= self._every

    def is_thorough(self, last: dict[str, Any]) -> bool:
        """Whether the next training is a thorough one."""
        return len(self._submissions()) - int(last.get("thorough", 0)) >= LABELS_PER_THOROUGH_TRAINING
