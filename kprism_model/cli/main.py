# SPDX-License-Identifier: Apache-2.0
"""Dispatch: the first word chooses the command, the rest belongs to it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from kprism_model.cli.usage import UsageError, usage

SERVER_COMMANDS = {
    "serve": "kprism_model.cli.serve",
    "viewer": "kprism_model.cli.app_tools",
    "import": "kprism_model.cli.app_tools",
    "versions": "kprism_model.cli.app_tools",
    "federate": "kprism_model.cli.app_tools",
    "test": "kprism_model.cli.checks",
}
"""Commands that need the app or a checkout. Their module has `run(name, words)`."""

LIBRARY_COMMANDS = {
    "train": ("kprism_model.training.pretraining", "train the three modes jointly on MSD-style folders or a pack"),
    "fit-kinds": (
        "kprism_model.training.kinds_command",
        "let a checkpoint tell kinds of images apart, without training it",
    ),
    "pack": ("kprism_model.data.packing", "write the slices of MSD-style folders into one file"),
    "evaluate": ("kprism_model.evaluation.command", "measure a checkpoint on test lists"),
    "compare": (
        "kprism_model.evaluation.comparison",
        "say whether new weights replace the current ones (status 0) or not (1)",
    ),
    "export": ("kprism_model.export.command", "write a checkpoint as ONNX files, for onnxruntime"),
    "convert": ("kprism_model.cli.convert", "turn weights in the published layout into a checkpoint"),
    "info": ("kprism_model.cli.info", "print what a checkpoint is and was made of"),
}
"""Commands of the library. Their module has `add_arguments` and `run`; only that of the chosen command is imported.

So each needs its own packages alone: training reads neither NIfTI files nor draws plots.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 1 or 2, with a sentence, for bad input."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["help"]
    if name in ("help", "-h", "--help"):
        print(usage(), end="")
        return 0
    if name in LIBRARY_COMMANDS:
        return _run_library(name, words)
    try:
        if name not in SERVER_COMMANDS:
            print(usage(), end="", file=sys.stderr)
            raise UsageError(f"unknown command {name!r}.")
        status: int = importlib.import_module(SERVER_COMMANDS[name]).run(name, words)
    except UsageError as error:
        print(f"kprism: {error}", file=sys.stderr)
        return 1
    return status


def _run_library(name: str, words: Sequence[str]) -> int:
    """A command of the library; bad input ends with a sentence and status 2."""
    module, purpose = LIBRARY_COMMANDS[name]
    implementation = importlib.import_module(module)
    parser = argparse.ArgumentParser(prog=f"kprism {name}", description=f"{purpose[0].upper()}{purpose[1:]}.")
    implementation.add_arguments(parser)
    arguments = parser.parse_args(words)
    try:
        status: int = implementation.run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status
