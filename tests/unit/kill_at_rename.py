# SPDX-License-Identifier: Apache-2.0
"""A kill at the worst moments: right before a file is renamed into place."""

from __future__ import annotations

import os
import signal
from pathlib import Path


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
