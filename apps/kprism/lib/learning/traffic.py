# SPDX-License-Identifier: Apache-2.0
"""Whether somebody is being answered: work in the background waits for quiet, so that no click waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

QUIET = 5.0
"""Seconds after the last answer in which the next request is likely."""


class Traffic:
    """Counts the requests that are being answered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._answering = 0
        self._last = time.monotonic()

    @contextmanager
    def request(self) -> Iterator[None]:
        """While a request is being answered."""
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
        """Whether a request is being answered, or has been within the last `QUIET` seconds."""
        with self._lock:
            return self._answering > 0 or time.monotonic() - self._last < QUIET
