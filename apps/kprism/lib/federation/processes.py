# SPDX-License-Identifier: Apache-2.0
"""FLARE's simulator starts processes in sessions of their own; they must not outlive the command."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil

_WATCH_SECONDS = 1.0


def kill_tree(pid: int) -> None:
    """Kill a process and all that it has started, itself last; nothing happens if it is gone."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for other in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                other.kill()


def end_with(parent: int) -> None:
    """Wait until the process `parent`, which has started this one, has ended; then kill this one's tree."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    kill_tree(os.getpid())
