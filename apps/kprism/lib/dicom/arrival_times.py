# SPDX-License-Identifier: Apache-2.0
"""When segmentations were first seen on the server; the times are kept over restarts.

Content times alone do not say which of two segmentations is newer: OHIF writes them in UTC, others in local time. The
one that was seen later is newer; content times decide between those that were there at the first start.

Earlier versions did not look for structure sets. Those that are there when a store is first looked through for them
were there before its labels, as far as anybody knows, so they replace none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from kprism_model.files import write_bytes

STRUCTURE_SETS = "structure sets"
"""The key of the time at which the server was first looked through for structure sets."""


class ArrivalTimes:
    """Series -> seconds since 1970, in a JSON file at `path`; for many threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._times: dict[str, float] = {STRUCTURE_SETS: time.time()}
        if path.is_file():
            self._times = {str(series): float(at) for series, at in json.loads(path.read_text()).items()}

    def note(self, series: Iterable[str], structure_sets: Iterable[str] = (), *, are_all: bool = False) -> None:
        """Record the time for series that are seen for the first time; `are_all`: all that the server has."""
        with self._lock:
            now = time.time()
            seen = dict.fromkeys(series, now)
            seen |= dict.fromkeys(structure_sets, now if STRUCTURE_SETS in self._times else 0.0)
            if are_all:
                seen[STRUCTURE_SETS] = now
            new = {identifier: at for identifier, at in seen.items() if identifier not in self._times}
            if not new:
                return
            self._times |= new
            write_bytes(self._path, json.dumps(self._times).encode())

    def time(self, series: str) -> float:
        """When a series was first seen; 0 if it was not."""
        return self._times.get(series, 0.0)
