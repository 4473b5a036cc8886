# SPDX-License-Identifier: Apache-2.0
"""Timing of requests to a server, and the table that they end in."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.live_server import LiveServer


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(values))


def peak_memory(process: int) -> int:
    """The largest resident memory that a process ever had, in bytes; Linux only."""
    return _status(process, "VmHWM")


def anonymous_memory(process: int) -> int:
    """The resident memory of a process that no file stands behind, in bytes; Linux only."""
    return _status(process, "RssAnon")


def _status(process: int, key: str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", status)[1])  # type: ignore[index]


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


@dataclass(frozen=True)
class Figure:
    """One line of a measurement: `value` in `unit` ("s", "MiB" or another), or a `text` where there is no number.

    `reference` is what the value is compared with, if that is not the same line of another measurement.
    """

    what: str
    value: float | None = None
    unit: str = "s"
    text: str = "-"
    reference: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return self.text
        if self.unit == "s":
            return f"{1000 * self.value:.0f} ms" if self.value < 1 else f"{self.value:.1f} s"
        return f"{self.value:,.0f} {self.unit}".strip()

    def ratio(self, other: Figure | None) -> str:
        """The value as a multiple of the reference, or of the other figure's value; "-" without one of them."""
        reference = self.reference or (other.value if other is not None else None)
        return f"{self.value / reference:.1f}" if self.value is not None and reference else "-"


class MemoryWatch:
    """The most anonymous memory that a process has while in the context, in bytes; Linux only.

    Mapped file pages are left out: the system takes them back when it needs memory, and they may be counted or not,
    depending on what other processes read.
    """

    EVERY = 0.05  # seconds

    def __init__(self, process: int) -> None:
        self.peak = 0
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self.peak = anonymous_memory(self._process)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self.EVERY):
            self.peak = max(self.peak, anonymous_memory(self._process))


class Table:
    """Rows of what was measured; with `at_once` each is printed as it comes."""

    def __init__(self, *columns: str, at_once: bool = False) -> None:
        self._columns = columns or ("what", "figure")
        self._rows: list[tuple[str, ...]] = []
        self._at_once = at_once
        if at_once:
            self._print_header()

    def row(self, *cells: str) -> None:
        """Add a row."""
        self._rows.append(cells)
        if self._at_once:
            self._print_row(cells)

    def times(self, what: str, asked: Asked) -> None:
        """Add a row with median and 95th percentile of the times of some requests."""
        p50, p95 = 1000 * np.percentile(asked.seconds, [50, 95])
        self.row(f"{what}, p50 / p95, n = {len(asked.seconds)}", f"{p50:.0f} / {p95:.0f} ms")

    def print(self) -> None:
        """Print the table in Markdown."""
        self._print_header()
        for row in self._rows:
            self._print_row(row)

    def _print_header(self) -> None:
        self._print_row(self._columns)
        print("|---" * len(self._columns) + "|", flush=True)

    def _print_row(self, cells: Sequence[str]) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)
