# SPDX-License-Identifier: Apache-2.0
"""The command `fit-kinds`: add a head for kinds of images to a checkpoint, without training it again."""

from __future__ import annotations

import argparse
from pathlib import Path

from kprism_model.checkpoint import checkpoint_stem, load_checkpoint, save_checkpoint
from kprism_model.training.kinds import IMAGES, fit_kinds, with_kinds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fit-kinds`."""
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="the data sets that it was trained on")
    parser.add_argument("--slices", type=Path, required=True, help="folder of their slice store; made if need be")
    parser.add_argument("--out", type=Path, required=True, help="stem of the checkpoint to write")
    parser.add_argument("--images", type=int, default=IMAGES, help="images of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Write a copy of the checkpoint whose network recognizes kinds of images; no mask changes."""
    checkpoint_stem(arguments.out)  # a bad name is reported before the work
    checkpoint = load_checkpoint(arguments.checkpoint)
    size = max(256, checkpoint.model.config.native_size)
    # Reading image files takes packages (nibabel) that a machine which trains from a pack need not have.
    from kprism_model.data.building import build_store

    store = build_store(arguments.data, arguments.slices, split="training", size=size)
    model = with_kinds(checkpoint.model, checkpoint.registry, store)
    accuracy = fit_kinds(model, store, seed=arguments.seed, images=arguments.images)
    metadata = {**checkpoint.metadata, "kinds": accuracy}
    save_checkpoint(arguments.out, model, checkpoint.registry, metadata=metadata, dtype="float16")
    figures = ", ".join(f"{name} {share:.3f}" for name, share in accuracy.items())
    print(f"wrote {arguments.out}.safetensors and {arguments.out}.json; accuracy on held-out images: {figures}")
    return 0
