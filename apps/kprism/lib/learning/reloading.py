# SPDX-License-Identifier: Apache-2.0
"""The server's own thread: takes up published versions, prepares references, and starts trainings when they are due.

Publishing happens in another process, or by hand; what serves is what `current.json` of the versions names. A new
version is loaded and its references are encoded beside the old one, which answers meanwhile; then they are exchanged,
and requests on their way end with the version that they began with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event, Thread

from lib.engine import Engine, network_of
from lib.learning.reference_cache import ReferenceCache
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import Schedule
from lib.learning.versions import Served, Versions

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds between two looks at the pointer, the ledger and the schedule."""


class WeightReloader:
    """Keeps engine and references at the present version and labels, from `start` to `stop`.

    `number` is the version that serves, `warning` why it is not the one that was published, None if it is.
    """

    def __init__(
        self,
        versions: Versions,
        engine: Engine,
        bank: ReferenceCache,
        submissions: Callable[[], Sequence[Submission]],
        schedule: Schedule,
        *,
        device: str,
        served: Served,
        stamp: tuple[int, int],
    ) -> None:
        self._versions, self._engine, self._bank = versions, engine, bank
        self._submissions, self._schedule, self._device = submissions, schedule, device
        self._stamp = stamp
        self.number, self.warning = served.number, served.warning
        self._wake, self._stopped = Event(), Event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Follow in the background."""
        self._thread = Thread(target=self._work, name="follow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Look now: a label has been submitted or a version made to serve."""
        self._wake.set()

    def step(self) -> None:
        """Look once: version, references, schedule."""
        self._exchange()
        network = self._engine.network()
        self._bank.update(network.predictor, network.version, self._submissions())
        self._schedule.poll()

    def _exchange(self) -> None:
        stamp = self._versions.stamp()
        if stamp == self._stamp:
            return
        served = self._versions.load(device=self._device)
        network = network_of(served.checkpoint, self._device)
        self._bank.update(network.predictor, network.version, self._submissions())
        self._engine.use(network)
        self._stamp, self.number, self.warning = stamp, served.number, served.warning
        logger.info("Version %d of the weights (%s) answers from now on", served.number, network.version)

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                self.step()
            except Exception:  # whatever fails, the server goes on with what it has and tries again
                logger.exception("The server could not take up what is new")
                self._stopped.wait(10 * INTERVAL)
            self._wake.wait(INTERVAL)
            self._wake.clear()
