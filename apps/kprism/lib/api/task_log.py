# SPDX-License-Identifier: Apache-2.0
"""The last lines that a background task (training, batch inference, scoring) has written, safe to read at any time.

MONAI Label appends them to a deque in a thread, while the answer of GET /train/ (or of any other route that returns a
task) is encoded in another: now and then the deque changed during the loop, and the answer was a 500.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from monailabel.utils.async_tasks import utils


class TaskLog(deque[str]):
    """Lines whose iteration goes over those of its beginning; other threads may append meanwhile."""

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                return iter(list(super().__iter__()))
            except RuntimeError:  # a line was appended in between: begin again
                continue


def install() -> None:
    """Let MONAI Label keep the lines of its tasks in a `TaskLog`."""
    utils.deque = TaskLog
