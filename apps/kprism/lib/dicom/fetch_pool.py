# SPDX-License-Identifier: Apache-2.0
"""A few threads that fetch images for all series: what somebody waits for first, else the series in turn."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread
from typing import Protocol

logger = logging.getLogger(__name__)

FETCH_THREADS = 4
"""Connections to the server at one time: with Orthanc, more are no faster."""

Job = Callable[[], None]


class JobSource(Protocol):
    """What has images to fetch."""

    def take(self, *, urgent: bool) -> Job | None:
        """The next image to fetch, None if there is none; with `urgent` only one that somebody waits for."""


class FetchPool:
    """At most `threads` threads; they start when there is something to fetch and end when there is nothing left.

    A job that fails is logged, and its thread goes on. A source that fails to give one is not asked again.
    """

    def __init__(self, threads: int = FETCH_THREADS) -> None:
        self._threads = threads
        self._lock = Lock()
        self._running = 0
        self._sources: deque[JobSource] = deque()

    @property
    def running(self) -> int:
        """The number of threads."""
        return self._running

    def serve(self, source: JobSource) -> None:
        """Fetch what a source has, also if it was served before and had nothing left."""
        with self._lock:
            if source not in self._sources:
                self._sources.append(source)
            missing = self._threads - self._running
            self._running = self._threads
        try:
            while missing:
                Thread(target=self._work, name="dicom-fetch", daemon=True).start()
                missing -= 1
        finally:
            if missing:  # the system has no more threads
                with self._lock:
                    self._running -= missing

    def _work(self) -> None:
        is_over = False
        while not is_over:
            try:
                job = self._next()
                is_over = job is None
                if job is not None:
                    job()
            except Exception:
                logger.exception("A fetch thread goes on after a failure")

    def _next(self) -> Job | None:
        """A job of the next source that has one, an urgent one if any source has one."""
        with self._lock:
            for urgent in (True, False):
                for _ in range(len(self._sources)):
                    source = self._sources.popleft()
                    job = source.take(urgent=urgent)
                    if job is not None or urgent:
                        self._sources.append(source)
                    if job is not None:
                        return job
            self._running -= 1
            return None
