# SPDX-License-Identifier: Apache-2.0
"""The time and the passes through the network that one request takes, for the JSON of its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kprism_model.volumes.predictor import VolumePredictor


@dataclass
class RequestStatistics:
    """Seconds spent on each step, files read, slices encoded and masks decoded; what comes from the cache adds none."""

    seconds: dict[str, float] = field(default_factory=dict)
    files_read: int = 0
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
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add time to step `name`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def count(self, volume: VolumePredictor) -> None:
        """Add the passes that a predictor made since its volume was set."""
        self.encoder_passes += volume.encoded_slices
        self.decoder_passes += volume.decoded_rows

    def latencies(self) -> dict[str, float]:
        """Seconds of every step and `total`, to a tenth of a millisecond."""
        total = time.perf_counter() - self._started
        return {name: round(value, 4) for name, value in (*self.seconds.items(), ("total", total))}
