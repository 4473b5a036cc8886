# SPDX-License-Identifier: Apache-2.0
"""What one request cost, for the JSON of its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Report:
    """Seconds spent on each step and passes through the network; cached work costs neither."""

    seconds: dict[str, float] = field(default_factory=dict)
    encoder_passes: int = 0
    decoder_passes: int = 0
    _started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time inside the context to step `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def latencies(self) -> dict[str, float]:
        """Seconds of every step and `total`, to a tenth of a millisecond."""
        total = time.perf_counter() - self._started
        return {name: round(value, 4) for name, value in (*self.seconds.items(), ("total", total))}
