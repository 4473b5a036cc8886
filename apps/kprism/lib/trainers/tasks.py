# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping a training in the server, one at a time.

MONAI Label would queue a second training behind the first, where it cannot be stopped and keeps the server from ending.
Here it is refused; labels that are submitted during a training count for the next one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import RLock
from typing import Any

import psutil
from monailabel.utils.async_tasks.task import AsyncTask

SUBMITTED, RUNNING, STOPPED = "SUBMITTED", "RUNNING", "STOPPED"
"""Status of a task in MONAI Label's words; a task ends as STOPPED, DONE or ERROR."""

ALREADY_RUNNING = "a training is running; labels submitted since it began count for the next one"

_START_TIMEOUT_SECONDS = 60.0
_METHOD = "train"
_lock = RLock()


def status() -> str | None:
    """Status of the newest training since the server started, in MONAI Label's words."""
    task = _newest()
    return None if task is None else str(task["status"])


def is_running() -> bool:
    """Whether a training is running or about to start."""
    return status() in (SUBMITTED, RUNNING)


def start(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Start a training in a process of its own; returns its task, or None if another one is running."""
    with _lock:
        if is_running():
            return None
        task, _ = AsyncTask.run(_METHOD, request=dict(request), enqueue=True)
        return dict(task)


def stop() -> dict[str, Any] | None:
    """Kill the processes of the training; returns its task, or None if none is running."""
    with _lock:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while status() == SUBMITTED and time.monotonic() < deadline:
            time.sleep(0.01)
        task = _newest()
        if task is None or task["status"] != RUNNING:
            return None
        task["status"] = STOPPED  # before the process ends, so that it does not look like a failure
        while True:
            try:
                AsyncTask.stop(_METHOD)
                return dict(task)
            except psutil.NoSuchProcess:  # one of its child processes has just ended; stop the others
                continue


def _newest() -> dict[str, Any] | None:
    """MONAI Label's own record of the newest training."""
    task, _ = AsyncTask.status(_METHOD)
    return task  # type: ignore[no-any-return]
