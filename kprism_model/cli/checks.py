# SPDX-License-Identifier: Apache-2.0
"""`kprism test`: ruff, mypy and pytest on the checkout; with arguments pytest alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from kprism_model.cli.processes import become
from kprism_model.cli.usage import UsageError
from kprism_model.locations import checkout

BEFORE_TESTS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])


def run(name: str, words: Sequence[str]) -> int:
    """The status of the first check that fails."""
    root = checkout()
    if root is None:
        raise UsageError("test: the tests are not part of the installed package; run them in a checkout.")
    os.chdir(root)
    for check in BEFORE_TESTS if not words else ():
        status = subprocess.run([sys.executable, "-m", *check], check=False).returncode
        if status:
            return status
    return become("pytest", *words, path=(root,))
