# SPDX-License-Identifier: Apache-2.0
"""A kill at the worst moments: right before a file is renamed into place."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def kill_before_rename(number: int) -> None:
    """From now on this process is killed, as by `kill -9`, before its rename of this number (0 is the next one)."""
    replace, left = os.replace, number

    def count(source: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        replace(source, target)

    os.replace = count  # type: ignore[assignment]


def status_of_copy(work: Callable[[], object]) -> int:
    """Do some work in a copy of this process: its exit status, -9 if it was killed.

    A copy spares the imports of a new process. It lacks the threads of this one, so it computes in a single thread.
    """
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # without the end of the tests, which is the other process's
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def status_of_killed(work: Callable[[], object], number: int) -> int:
    """Do some work in a copy of this process that is killed before its rename of this number: its exit status."""

    def killed() -> None:
        kill_before_rename(number)
        work()

    return status_of_copy(killed)
