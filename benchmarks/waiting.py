# SPDX-License-Identifier: Apache-2.0
"""Timing of requests to a server, and the table that they end in."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_server import LiveServer


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(values))


def peak_memory(process: int) -> int:
    """The largest resident memory that a process ever had, in bytes; Linux only."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


class Asked:
    """Requests of one kind and the seconds from sending each until its mask is there."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def ask(self, server: LiveServer, model: str, image: str, params: dict[str, Any]) -> None:
        """A request as OHIF sends it, for the mask alone."""
        started = time.perf_counter()
        server.infer(model, image, params).raise_for_status()
        self.seconds.append(time.perf_counter() - started)

    def full(self, server: LiveServer, model: str, image: str, params: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """A request for mask and JSON, as 3D Slicer sends it: (seconds, JSON)."""
        started = time.perf_counter()
        answer, _ = server.infer_all(model, image, params)
        self.seconds.append(time.perf_counter() - started)
        return self.seconds[-1], answer

    def median(self) -> float:
        """The median in seconds."""
        return median(self.seconds)


class Table:
    """Rows of what was measured."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str]] = []

    def row(self, what: str, value: str) -> None:
        """Add a row."""
        self._rows.append((what, value))

    def times(self, what: str, asked: Asked) -> None:
        """Add a row with median and 95th percentile of the times of some requests."""
        p50, p95 = 1000 * np.percentile(asked.seconds, [50, 95])
        self.row(f"{what}, p50 / p95, n = {len(asked.seconds)}", f"{p50:.0f} / {p95:.0f} ms")

    def print(self) -> None:
        """Print the table in Markdown."""
        print("| what | figure |\n|---|---|")
        for what, value in self._rows:
            print(f"| {what} | {value} |")
