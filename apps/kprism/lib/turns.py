# SPDX-License-Identifier: Apache-2.0
"""A lock whose holders follow one another in the order in which they asked for it, those in a hurry first."""

from __future__ import annotations

from collections import deque
from threading import Lock

HURRIED_IN_A_ROW = 4
"""So many hurried turns may come before one of the others that wait."""


class Turns:
    """A lock for many threads, of which none starves.

    With a plain lock, a thread that releases it and asks again at once nearly always gets it again: a request for a
    whole volume would keep a click waiting to its end.
    """

    def __init__(self) -> None:
        self._guard = Lock()
        self._hurried: deque[Lock] = deque()
        self._others: deque[Lock] = deque()
        self._in_a_row = 0
        self._held = False

    def acquire(self, hurried: bool = False) -> None:
        """Wait for one's turn; `hurried` is for short work that somebody looks at."""
        with self._guard:
            if not self._held:
                self._held = True
                return
            gate = Lock()
            gate.acquire()
            (self._hurried if hurried else self._others).append(gate)
        gate.acquire()

    def release(self) -> None:
        """Let the next one go on; only whoever holds the lock may call it."""
        with self._guard:
            if self._hurried and not (self._others and self._in_a_row >= HURRIED_IN_A_ROW):
                self._in_a_row += 1
                self._hurried.popleft().release()
            elif self._others:
                self._in_a_row = 0
                self._others.popleft().release()
            else:
                self._held = False

    @property
    def waiting(self) -> int:
        """How many threads wait."""
        with self._guard:
            return len(self._hurried) + len(self._others)
