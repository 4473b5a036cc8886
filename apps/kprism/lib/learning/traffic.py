# SPDX-License-Identifier: Apache-2.0
"""Whether requests are being answered: background work waits until there are none, so that it delays no click."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

QUIET_SECONDS = 5.0
"""Seconds after an answer in which the next request is likely."""


class Traffic:
    """Counts the requests that are being answered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._answering = 0
        self._last = time.monotonic()

    @contextmanager
    def request(self) -> Iterator[None]:
        """A context around the answering of a request."""
        with self._lock:
            self._answering += 1
        try:
            yield
        finally:
            with self._lock:
                self._answering -= 1
                self._last = time.monotonic()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or has been within the last `QUIET_SECONDS` seconds."""
        with self._lock:
            return self._answering > 0 or time.monotonic() - self._last < QUIET_SECONDS
