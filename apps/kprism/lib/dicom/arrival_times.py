# SPDX-License-Identifier: Apache-2.0
"""When segmentations were first seen on the server; the times are kept over restarts.

Content times alone do not say which of two segmentations is newer: OHIF writes them in UTC, others in local time. The
one that was seen later is newer; content times decide between those that were there at the first start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from kprism_model.files import write_bytes


class ArrivalTimes:
    """Series -> seconds since 1970, in a JSON file at `path`; for many threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._times: dict[str, float] = {}
        if path.is_file():
            self._times = {str(series): float(at) for series, at in json.loads(path.read_text()).items()}

    def note(self, series: Iterable[str]) -> None:
        """Record the time for series that are seen for the first time."""
        with self._lock:
            new = [identifier for identifier in series if identifier not in self._times]
            if not new:
                return
            now = time.time()
            self._times.update((identifier, now) for identifier in new)
            write_bytes(self._path, json.dumps(self._times).encode())

    def time(self, series: str) -> float:
        """When a series was first seen; 0 if it was not."""
        return self._times.get(series, 0.0)
