# SPDX-License-Identifier: Apache-2.0
"""`kprism convert`: weights with the tensor names of the published K-Prism code become a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.convert import config_of, convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `convert`."""
    parser.add_argument("weights", type=Path, help="safetensors file with the published tensor names")
    parser.add_argument("out", type=Path, help="stem of the checkpoint to write")
    parser.add_argument("--classes", nargs="*", help="names of the classes, in the order of their rows")


def run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint; ValueError for another kind of file or other tensors."""
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
