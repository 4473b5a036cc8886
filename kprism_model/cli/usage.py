# SPDX-License-Identifier: Apache-2.0
"""What the commands are for, and the error of arguments that they cannot use."""

from __future__ import annotations

from pathlib import Path

from kprism_model.locations import checkout

FILE = Path(__file__).with_name("usage.txt")
"""The shell script `kprism` prints it too, before there is an environment."""


class UsageError(Exception):
    """Arguments that a command cannot use, in a sentence that names the value and what was expected."""


def usage() -> str:
    """What `kprism help` prints; an installed command is not in the current folder and makes no environment."""
    text = FILE.read_text(encoding="utf-8")
    return text if checkout() else text.replace("./kprism", "kprism").partition("\nThe first start")[0]
