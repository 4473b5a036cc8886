# SPDX-License-Identifier: Apache-2.0
"""Command line: python -m kprism_model train | fit-kinds | evaluate | convert | export | info."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.evaluation import command as evaluation
from kprism_model.export import command as export
from kprism_model.network.convert import config_of, convert
from kprism_model.training import kinds_command, pretraining


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends with a sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m kprism_model", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    train = commands.add_parser("train", help="train the three modes jointly on MSD-style folders")
    pretraining.add_arguments(train)
    train.set_defaults(execute=pretraining.run)
    kinds = commands.add_parser("fit-kinds", help="let a checkpoint tell kinds of images apart, without training it")
    kinds_command.add_arguments(kinds)
    kinds.set_defaults(execute=kinds_command.run)
    evaluate = commands.add_parser("evaluate", help="measure a checkpoint on test lists")
    evaluation.add_arguments(evaluate)
    evaluate.set_defaults(execute=evaluation.run)
    published = commands.add_parser("convert", help="turn weights in the published layout into a checkpoint")
    published.add_argument("weights", type=Path, help="safetensors file with the published tensor names")
    published.add_argument("out", type=Path, help="stem of the checkpoint to write")
    published.add_argument("--classes", nargs="*", help="names of the classes, in the order of their rows")
    published.set_defaults(execute=_convert)
    graphs = commands.add_parser("export", help="write a checkpoint as ONNX files, for onnxruntime")
    export.add_arguments(graphs)
    graphs.set_defaults(execute=export.run)
    info = commands.add_parser("info", help="print what a checkpoint is and was made of")
    info.add_argument("checkpoint", type=Path)
    info.set_defaults(execute=_info)
    arguments = parser.parse_args(argv)
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
