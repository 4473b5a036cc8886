# SPDX-License-Identifier: Apache-2.0
"""The time that steps take, without the pauses of a training that was stopped for a while."""

from __future__ import annotations

from collections import deque
from statistics import median

_PAUSE_SECONDS = 20.0  # no shorter wait counts as a pause: a first step compiles, another process takes the cores
_PAUSE_FACTOR = 10.0
_REMEMBERED = 50


class StepTimes:
    """Tells a step from a pause: a stopped process (SIGSTOP, a closed laptop) does not spend its budget of time."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

    def counted(self, seconds: float) -> float:
        """What counts of a step that took `seconds`: all of it, or the usual time if it was stopped meanwhile."""
        usual = median(self._recent) if self._recent else seconds
        if seconds > max(_PAUSE_SECONDS, _PAUSE_FACTOR * usual):
            return usual
        self._recent.append(seconds)
        return seconds
