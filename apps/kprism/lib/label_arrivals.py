# SPDX-License-Identifier: Apache-2.0
"""Labels that somebody else than the server wrote or removed, each given out once its file is quiet.

A file that is copied grows for a while; a label is read when its file has stayed the same for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from threading import Lock

QUIET_SECONDS = 1.0
"""A file that has stayed the same for so long is taken for complete."""


class LabelArrivals:
    """Ids of images whose label changed; `stamp_of` gives what changes whenever the label's file does."""

    def __init__(self, stamp_of: Callable[[str], Hashable]) -> None:
        self._stamp_of = stamp_of
        self._waiting: dict[str, tuple[Hashable, float]] = {}
        self._lock = Lock()

    def add(self, image_id: str, delay: float = 0.0) -> None:
        """Note that a label came, went or changed; it is given out after `delay` seconds at the earliest."""
        with self._lock:
            self._waiting[image_id] = (object(), time.monotonic() + delay)

    def quiet(self) -> list[str]:
        """Take out those whose files have stayed the same for a while, the longest waiting first."""
        with self._lock:
            waiting = dict(self._waiting)
        quiet = []
        for image_id, entry in waiting.items():
            before, since = entry
            stamp, now = self._stamp_of(image_id), time.monotonic()
            with self._lock:
                if self._waiting.get(image_id) != entry:  # it changed just now
                    continue
                if stamp != before:
                    self._waiting[image_id] = (stamp, max(now, since))
                elif now - since >= QUIET_SECONDS:
                    del self._waiting[image_id]
                    quiet.append(image_id)
        return quiet
