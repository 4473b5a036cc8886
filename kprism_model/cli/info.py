# SPDX-License-Identifier: Apache-2.0
"""`kprism info`: what a checkpoint is and was made of, as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kprism_model.checkpoint import load_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `info`."""
    parser.add_argument("checkpoint", type=Path)


def run(arguments: argparse.Namespace) -> int:
    """Print the version, size, configuration, classes and provenance of a checkpoint."""
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
