# SPDX-License-Identifier: Apache-2.0
"""A ready predictor in one call: `load("small")` for the shipped weights, `load(path)` for any checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from kprism_model.checkpoint import load_checkpoint
from kprism_model.locations import weights_folder
from kprism_model.predictor import Predictor

PREFIX = "kprism_"
"""The shipped weights "small" are in `kprism_small.safetensors` and `.json`."""


def load(weights: str | Path, *, device: str | torch.device = "cpu") -> Predictor:
    """A predictor of shipped weights, by their name ("small"), or of the checkpoint at a path, with or without suffix.

    ValueError for a word that is neither, and for files that are not a checkpoint (`CheckpointError`).
    """
    presets = preset_paths()
    path = presets.get(str(weights), Path(weights))
    is_word = str(weights) == path.stem
    if is_word and not path.with_suffix(".safetensors").is_file():
        names = ", ".join(repr(name) for name in presets)
        raise ValueError(f"unknown weights {str(weights)!r}: expected {names} or the path of a checkpoint")
    checkpoint = load_checkpoint(path, device=device)
    return Predictor(checkpoint.model, checkpoint.registry, device=device)


def preset_paths() -> dict[str, Path]:
    """Name of shipped weights -> their file."""
    files = sorted(weights_folder().glob(f"{PREFIX}*.safetensors"))
    return {file.stem.removeprefix(PREFIX): file for file in files}
