# SPDX-License-Identifier: Apache-2.0
"""Command line: python -m kprism_model train | fit-kinds | pack | evaluate | compare | convert | export | info."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.convert import config_of, convert

_MODULES = {
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
}
"""Commands with a module of their own, which has `add_arguments` and `run`; only that of the command is imported.

So each needs its own packages alone: training reads neither NIfTI files nor draws plots.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends with a sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m kprism_model", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    words = sys.argv[1:] if argv is None else argv
    for name, (module, purpose) in _MODULES.items():
        command = commands.add_parser(name, help=purpose)
        if words and words[0] == name:
            implementation = importlib.import_module(module)
            implementation.add_arguments(command)
            command.set_defaults(execute=implementation.run)
    published = commands.add_parser("convert", help="turn weights in the published layout into a checkpoint")
    published.add_argument("weights", type=Path, help="safetensors file with the published tensor names")
    published.add_argument("out", type=Path, help="stem of the checkpoint to write")
    published.add_argument("--classes", nargs="*", help="names of the classes, in the order of their rows")
    published.set_defaults(execute=_convert)
    info = commands.add_parser("info", help="print what a checkpoint is and was made of")
    info.add_argument("checkpoint", type=Path)
    info.set_defaults(execute=_info)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.execute(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def _convert(arguments: argparse.Namespace) -> int:
    if arguments.weights.suffix != ".safetensors":
        raise ValueError(f"{arguments.weights}: expected a .safetensors file; pickled files can run code")
    try:
        published = load_file(arguments.weights)
    except SafetensorError as error:
        raise ValueError(f"{arguments.weights} is not a safetensors file: {error}") from error
    config = config_of(published)
    names = arguments.classes or [f"class {row + 1}" for row in range(config.num_classes)]
    source = {"source": "published layout", "file": arguments.weights.name}
    save_checkpoint(arguments.out, convert(published, config=config), ClassRegistry(names), metadata=source)
    print(f"wrote {arguments.out}.safetensors and {arguments.out}.json")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    checkpoint = load_checkpoint(arguments.checkpoint)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    content = {
        "weights_version": checkpoint.weights_version,
        "parameters": parameters,
        "config": checkpoint.model.config.to_dict(),
        "classes": checkpoint.registry.to_list(),
        "metadata": checkpoint.metadata,
    }
    print(json.dumps(content, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
