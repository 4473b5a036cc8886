# SPDX-License-Identifier: Apache-2.0
"""Memory that a training step frees stays with the process for the next one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HELD = """
import sys
import numpy as np
from kprism_model.training.allocation import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
np.ones(64 << 17)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much memory is held is read from Linux's /proc")
@pytest.mark.parametrize(("how", "kept"), [("keep", True), ("plain", False)])
def test_freed_memory_is_kept_only_where_asked(how: str, kept: bool, repository: Path) -> None:
    command = [sys.executable, "-c", HELD, how]
    held = int(subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout)
    assert (held > 60 << 20) == kept
