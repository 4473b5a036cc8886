# SPDX-License-Identifier: Apache-2.0
"""Replaces this process by another Python program, which sees the same environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def become(module: str, *words: str, path: tuple[Path, ...] = ()) -> NoReturn:
    """Run `python -m module words...` in place of this process; `path` is put before PYTHONPATH.

    The process keeps its number, so that signals from a terminal or a service manager reach the program itself. Modules
    are never taken from the current folder (-P), which is the user's.
    """
    environment = dict(os.environ)
    places = [*map(str, path), *filter(None, [environment.get("PYTHONPATH")])]
    if places:
        environment["PYTHONPATH"] = os.pathsep.join(places)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *words], environment)
