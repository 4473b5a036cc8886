# SPDX-License-Identifier: Apache-2.0
"""The budget of a training, over all its resumptions: minutes, in which the pauses of a stopped process do not count,
or steps.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_MIN_PAUSE_SECONDS = 20.0  # shorter waits are not pauses: a first step compiles, another process takes the cores
_PAUSE_FACTOR = 10.0  # of the median step
_MEDIAN_STEPS = 50


class TimeBudget:
    """Adds up the seconds of training steps until `minutes` are spent, or counts `steps` until all are `taken`.

    A step during which the process was stopped (SIGSTOP, a closed laptop) counts as a step of median length. With
    `steps`, the minutes do not matter: a training does the same however fast and busy the machine is.
    """

    def __init__(self, minutes: float, steps: int | None = None) -> None:
        self.minutes, self.steps = minutes, steps
        self.seconds, self.taken = 0.0, 0
        self._recent: deque[float] = deque(maxlen=_MEDIAN_STEPS)

    @property
    def share(self) -> float:
        """Share of the budget that is spent; 1 or more when it is used up."""
        if self.steps is not None:
            return self.taken / self.steps if self.steps > 0 else 1.0
        return self.seconds / (60 * self.minutes) if self.minutes > 0 else 1.0

    def add_step(self, seconds: float) -> None:
        """Count a step that took `seconds`."""
        usual = median(self._recent) if self._recent else seconds
        if seconds > max(_MIN_PAUSE_SECONDS, _PAUSE_FACTOR * usual):
            self.seconds += usual
            return
        self._recent.append(seconds)
        self.seconds += seconds
