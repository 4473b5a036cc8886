# SPDX-License-Identifier: Apache-2.0
"""Kills a real process of the server in the middle of writing a file, for `tests/e2e/test_faults.py`.

Python imports this module at the start of every process that has this folder in its PYTHONPATH. The file that
`KPRISM_TEST_KILL` names holds a pattern: the process that is about to put a file of such a name in place leaves half
of it, as if it had got no further, and is killed as by `kill -9`. The order counts once.
"""

from __future__ import annotations

import fnmatch
import os
import signal
from pathlib import Path

_order = Path(os.environ["KPRISM_TEST_KILL"])
_replace = os.replace


def _replace_or_die(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    try:
        pattern = _order.read_text()
    except FileNotFoundError:
        pattern = ""
    if pattern and fnmatch.fnmatch(Path(target).name, pattern):
        _order.unlink()
        os.truncate(source, Path(source).stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    _replace(source, target)


os.replace = _replace_or_die
