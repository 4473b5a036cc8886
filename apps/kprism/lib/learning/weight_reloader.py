# SPDX-License-Identifier: Apache-2.0
"""A thread of the server that loads published versions, encodes references, and starts trainings that are due.

Another process publishes versions, or a user goes back to one; `current.json` names the one that should serve. A new
version is loaded and its references are encoded while the old one still answers; then they are exchanged. A request
ends with the version that it began with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event, Thread

from lib.engine import Engine, network_of
from lib.learning.reference_cache import ReferenceCache
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import TrainingSchedule
from lib.learning.versions import Served, Versions

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Seconds between two checks of the versions, the submissions and the schedule."""


class WeightReloader:
    """Keeps the engine at the current version and the references at the current labels, from `start` to `stop`.

    `number` is the version that serves; `warning` says why it is not the one that was published, None if it is.
    """

    def __init__(
        self,
        versions: Versions,
        engine: Engine,
        reference_cache: ReferenceCache,
        submissions: Callable[[], Sequence[Submission]],
        schedule: TrainingSchedule,
        *,
        device: str,
        served: Served,
        stamp: tuple[int, int],
    ) -> None:
        self._versions, self._engine, self._reference_cache = versions, engine, reference_cache
        self._submissions, self._schedule, self._device = submissions, schedule, device
        self._stamp = stamp
        self.number, self.warning = served.number, served.warning
        self._wake, self._stopped = Event(), Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Check now: a label was submitted or another version was chosen."""
        self._wake.set()

    def step(self) -> None:
        """Check once: version, references, schedule."""
        self._reload()
        network = self._engine.network()
        self._reference_cache.update(network.predictor, network.version, self._submissions())
        self._schedule.poll()

    def _reload(self) -> None:
        stamp = self._versions.stamp()
        if stamp == self._stamp:
            return
        served = self._versions.load(device=self._device)
        network = network_of(served.checkpoint, self._device)
        self._reference_cache.update(network.predictor, network.version, self._submissions())
        self._engine.use(network)
        self._stamp, self.number, self.warning = stamp, served.number, served.warning
        logger.info("Version %d of the weights (%s) answers from now on", served.number, network.version)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.step()
            except Exception:  # whatever fails, the server keeps what it has and tries again
                logger.exception("The server could not load what is new")
                self._stopped.wait(10 * POLL_SECONDS)
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()
