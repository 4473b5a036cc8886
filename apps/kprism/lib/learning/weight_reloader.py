# SPDX-License-Identifier: Apache-2.0
"""A thread of the server that loads published versions, encodes references, and starts trainings that are due.

Another process publishes versions, or a user goes back to one; `current.json` names the one that should serve. A new
version is loaded and its references are encoded while the old one still answers; then they are exchanged. Networks that
both versions use are neither loaded nor encoded again. A request ends with the networks that it began with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event, Thread

from kprism_model.checkpoint import Checkpoint
from lib.engine import Engine
from lib.learning.reference_cache import ReferenceCache
from lib.learning.submission_store import Submission
from lib.learning.submitted_references import referred_to
from lib.learning.training_schedule import TrainingSchedule
from lib.learning.version_files import SHIPPED
from lib.learning.versions import Served, Versions
from lib.networks import Network, Networks, network_of

logger = logging.getLogger(__name__)

STOP_TIMEOUT_SECONDS = 10.0
"""Seconds that `stop` waits: a case whose voxels still have to arrive may take longer, and ends with the process."""

POLL_SECONDS = 0.5
"""Seconds between two checks of the versions, the submissions and the schedule."""

ENCODED_PER_CHECK = 16
"""Cases that are encoded between two checks, the newest first: a folder may hold thousands that are new."""


class WeightReloader:
    """Keeps the engine at the current version and the references at the current labels, from `start` to `stop`."""

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
        self._stamp, self._served = stamp, served
        self._wake, self._stopped = Event(), Event()
        self._thread: Thread | None = None

    @property
    def number(self) -> int:
        """The version that serves."""
        return self._served.number

    @property
    def warning(self) -> str | None:
        """Why the version that serves is not the one that was published; None if it is."""
        return self._served.warning

    def start(self) -> None:
        """Start the thread."""
        self._thread = Thread(target=self._run, name="reload", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Start no training any more, and end the thread soon."""
        self._stopped.set()
        self._wake.set()

    def stop(self) -> None:
        """End the thread after the case that it encodes; wait for it, but not for long."""
        self.finish()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_SECONDS)

    def wake(self) -> None:
        """Check now: a label was submitted or another version was chosen."""
        self._wake.set()

    def step(self) -> None:
        """Check once: version, references, schedule."""
        self._reload()
        networks = self._engine.networks()
        if self._encode_references(networks, limit=ENCODED_PER_CHECK):
            self._wake.set()  # there may be more
        self._reference_cache.keep([network.version for network in networks])
        if not self._stopped.is_set():
            self._schedule.poll()

    def _reload(self) -> None:
        stamp = self._versions.stamp()
        if stamp == self._stamp:
            return
        served = self._versions.load(device=self._device, loaded=self._served.checkpoints())
        networks = networks_of(served, self._device, self._engine.networks())
        self._encode_references(networks)
        if self._stopped.is_set():
            return
        self._engine.use(networks)
        self._stamp, self._served = stamp, served
        logger.info("Version %d of the weights (%s) answers from now on", served.number, networks.version)

    def _encode_references(self, networks: Networks, *, limit: int | None = None) -> int:
        """Encode new cases with each network, at most `limit` for each; returns how many were encoded."""
        submissions, encoded = self._submissions(), 0
        for network in networks:
            needed = referred_to(networks, network, submissions)
            encoded += self._reference_cache.update(
                network.predictor, network.version, needed, limit=limit, go_on=lambda: not self._stopped.is_set()
            )
        return encoded

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.step()
            except Exception:  # whatever fails, the server keeps what it has and tries again
                logger.exception("The server could not load what is new")
                self._stopped.wait(10 * POLL_SECONDS)
            self._wake.wait(POLL_SECONDS)
            self._wake.clear()


def networks_of(served: Served, device: str, before: Networks | None = None) -> Networks:
    """The networks that serve; those that did so `before`, with the same weights and name, are the same objects."""
    known = {(network.name, network.version): network for network in before or ()}

    def network(checkpoint: Checkpoint, number: int | None = None) -> Network:
        new = network_of(checkpoint, device, number=number)
        return known.get((new.name, new.version), new)

    return Networks(
        shipped=network(served.shipped),
        parts={number: network(checkpoint, number) for number, checkpoint in served.parts.items()},
        routes=served.routes,
        kinds=served.kinds,
        provisional=served.provisional,
        serving=None if served.number == SHIPPED or not served.routes.numbers() else served.weights_version,
    )
