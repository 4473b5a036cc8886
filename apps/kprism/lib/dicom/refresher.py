# SPDX-License-Identifier: Apache-2.0
"""Work that is done again when somebody asks and the last time is too long ago, without letting them wait for long.

A server with many thousand series needs half a minute to list them. Requests then go on with what the last listing
brought, while a thread makes the next one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Condition, Thread, current_thread

logger = logging.getLogger(__name__)

PAUSE = 5.0
"""The pause after some work, as a multiple of the time that it took: it takes a sixth of the server's time at most."""

LONGEST_PAUSE_SECONDS = 30.0
"""No pause is longer, however long the work took: others store labels meanwhile."""

PATIENCE_SECONDS = 0.5
"""Work that took no longer is waited for; longer work is done in the background."""


class Refresher:
    """Does `work` in a thread, one at a time; what it brought is used for `seconds`, longer if the work takes long.

    `work` returns how many seconds the server was busy with it, None if that was all the time. Work that failed does
    not count: it may succeed when it is tried again.
    """

    def __init__(self, work: Callable[[], float | None], seconds: float, name: str) -> None:
        self._work, self._seconds, self._name = work, seconds, name
        self._condition = Condition()
        self._begun = self._ended = 0  # how often the work was begun, and ended
        self._began_at = self._ended_at = -1e9
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self.duration = 0.0
        self._busy = 0.0

    @property
    def is_quick(self) -> bool:
        """Whether the work took a moment the last time."""
        return self._ended > 0 and self.duration <= PATIENCE_SECONDS

    @property
    def may_be_quick(self) -> bool:
        """The same, or it is not known yet."""
        return self._ended == 0 or self.is_quick

    def ask(self, *, patience: float | None = PATIENCE_SECONDS, enough: Callable[[], bool] = lambda: False) -> None:
        """Begin the work if it is time for it; wait for it until it is `patience` seconds old or has done `enough`.

        Without `patience` (None) there is no limit. The error of the last work that ended is raised.
        """
        with self._condition:
            if self._thread is None and self._is_due():
                self._begin()
            if self._thread not in (None, current_thread()):
                number = self._begun
                left = None if patience is None else max(0.0, self._began_at + patience - time.monotonic())
                self._condition.wait_for(lambda: self._ended >= number or enough(), left)
            self._raise()

    def now(self) -> None:
        """Wait for work that begins after this call, which sees all that was on the server before."""
        with self._condition:
            if self._thread is current_thread():
                return
            number = self._begun + 1
            while self._ended < number:
                if self._thread is None:
                    self._begin()
                self._condition.wait()
            self._raise()

    def progress(self) -> None:
        """Called by the work: there may be `enough` for those who wait."""
        with self._condition:
            self._condition.notify_all()

    @property
    def pause(self) -> float:
        """Seconds for which the server should be left alone after the last work."""
        return min(PAUSE * self._busy, LONGEST_PAUSE_SECONDS)

    def _is_due(self) -> bool:
        return time.monotonic() - self._ended_at > max(self._seconds, self.pause)

    def _begin(self) -> None:
        self._begun += 1
        self._began_at = time.monotonic()
        self._thread = Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        busy: float | None = 0.0
        try:
            busy = self._work()
        except BaseException as raised:  # for whoever waits; the next work may succeed
            logger.debug("%s failed", self._name, exc_info=True)
            error = raised
        with self._condition:
            self._error, self._thread = error, None
            self._ended += 1
            self._ended_at = time.monotonic()
            self.duration = self._ended_at - self._began_at
            self._busy = self.duration if busy is None else busy
            self._condition.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
