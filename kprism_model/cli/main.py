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
    "export-dataset": "kprism_model.cli.app_tools",
    "federate": "kprism_model.cli.app_tools",
    "test": "kprism_model.cli.checks",
}
"""Commands that need the app or a checkout. Their module has `run(name, words)`."""

LIBRARY_COMMANDS = {
    "prepare": ("kprism_model.preparation.command", "make a data set of a public download"),
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

VARIANTS = {
    ("train", "--recipe", "published"): (
        "kprism_model.published.training.command",
        "train the network of the paper as the paper does",
    ),
    ("evaluate", "--protocol", "published"): (
        "kprism_model.published.evaluation.command",
        "measure a checkpoint as the paper does, beside the figures of the paper",
    ),
}
"""A command with this option and value is another one, with options of its own."""


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


def _run_library(name: str, words: list[str]) -> int:
    """A command of the library; bad input ends with a sentence and status 2, Ctrl-C with status 130."""
    command, (module, purpose), words = _variant(name, words)
    implementation = importlib.import_module(module)
    others = [
        f"kprism {' '.join(variant)} --help: {what}."
        for variant, (_, what) in VARIANTS.items()
        if variant[0] == command
    ]
    parser = argparse.ArgumentParser(
        prog=f"kprism {command}", description=f"{purpose[0].upper()}{purpose[1:]}.", epilog=" ".join(others) or None
    )
    implementation.add_arguments(parser)
    arguments = parser.parse_args(words)
    try:
        status: int = implementation.run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130  # as shells count it
    return status


def _variant(name: str, words: list[str]) -> tuple[str, tuple[str, str], list[str]]:
    """The command that is meant, its module and purpose, and the words without the option that chose it."""
    for (command, option, value), chosen in VARIANTS.items():
        for place, word in enumerate(words if command == name else []):
            given = (word, *words[place + 1 : place + 2])
            if given == (option, value):
                return f"{command} {option} {value}", chosen, [*words[:place], *words[place + 2 :]]
            if word == f"{option}={value}":
                return f"{command} {option} {value}", chosen, [*words[:place], *words[place + 1 :]]
    return name, LIBRARY_COMMANDS[name], words
