# SPDX-License-Identifier: Apache-2.0
"""`kprism test`: the checks of the checkout, in the tiers of `tests/run.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from kprism_model.cli.processes import become
from kprism_model.cli.usage import UsageError
from kprism_model.locations import checkout


def run(name: str, words: Sequence[str]) -> NoReturn:
    """Become the test command, in the root of the checkout."""
    root = checkout()
    if root is None:
        raise UsageError("test: the tests are not part of the installed package; run them in a checkout.")
    os.chdir(root)
    become("tests.run", *words, path=(root,))
