# SPDX-License-Identifier: Apache-2.0
"""The time budget of a training, over all its resumptions; the pauses of a stopped process do not count."""

from __future__ import annotations

from collections import deque
from statistics import median

_MIN_PAUSE_SECONDS = 20.0  # shorter waits are not pauses: a first step compiles, another process takes the cores
_PAUSE_FACTOR = 10.0  # of the median step
_MEDIAN_STEPS = 50


class TimeBudget:
    """Adds up the seconds of training steps until `minutes` are spent.

    A step during which the process was stopped (SIGSTOP, a closed laptop) counts as a step of median length.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.seconds = 0.0
        self._recent: deque[float] = deque(maxlen=_MEDIAN_STEPS)

    @property
    def share(self) -> float:
        """Share of the budget that is spent; 1 or more when it is used up."""
        return self.seconds / (60 * self.minutes) if self.minutes > 0 else 1.0

    def add_step(self, seconds: float) -> None:
        """Count a step that took `seconds`."""
        usual = median(self._recent) if self._recent else seconds
        if seconds > max(_MIN_PAUSE_SECONDS, _PAUSE_FACTOR * usual):
            self.seconds += usual
            return
        self._recent.append(seconds)
        self.seconds += seconds
