# SPDX-License-Identifier: Apache-2.0
"""A tiny network that has been taught two structures, for tests in which a training has to succeed within seconds.

`tiny_network.safetensors` was made once:

    python -m tests.tiny_network
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kprism_model.checkpoint import Checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase, StoreBuilder
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.finetune import FinetunePlan, Finetuner

WEIGHTS = Path(__file__).with_suffix(".safetensors")

STRUCTURES = ("liver", "spleen")
"""What it was taught: discs and blocks, whatever their grey values."""

CASES, STEPS = 64, 1500
SIDE = 64


def copy_weights(path: Path) -> Path:
    """Copy the weights to `path` (with .safetensors, and .json beside it)."""
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(WEIGHTS.with_suffix(suffix), path.with_suffix(suffix))
    return path.with_suffix(".safetensors")


def drawn(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """An image (row, column) and its label: 1 a disc, 2 a block, each of a grey value that differs from the noise's."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    label = np.zeros((SIDE, SIDE), np.uint8)
    row, column, half = rng.integers(8, 40), rng.integers(8, 40), rng.integers(5, 11, 2)
    label[row : row + 2 * half[0], column : column + 2 * half[1]] = 2
    row, column, radius = rng.integers(12, 52), rng.integers(12, 52), rng.integers(5, 12)
    label[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = 1
    greys = rng.permutation(np.array([0.2, 0.5, 0.8]) + rng.normal(0, 0.05, 3))
    return (greys[label] + rng.normal(0, 0.04, label.shape)).clip(0, 1).astype(np.float32), label


def main() -> None:
    """Train, and write the weights."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    registry = ClassRegistry(STRUCTURES)
    start = Checkpoint(KPrism(KPrismConfig.tiny(num_classes=2)).eval(), registry, {}, "random", WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        builder = StoreBuilder(Path(folder) / "slices", start.model.config.native_size)
        for number in range(CASES):
            image, label = drawn(rng)
            structures = {name: value for value, name in enumerate(STRUCTURES, 1) if (label == value).any()}
            builder.add(AnnotatedCase(f"{number}", f"{number}", image[None], label[None], structures))
        plan = FinetunePlan(minutes=30, batch_size=8, learning_rate=3e-3, in_context=0.5, interactive=0.5)
        tuner = Finetuner(start, builder.store(), plan, Path(folder) / "run")
        for record in islice(tuner.steps(), STEPS):
            if record["step"] % 100 == 0:
                print(record["step"], round(record["loss"], 3), tuner.recent_means(), flush=True)
        save_checkpoint(WEIGHTS, tuner.averaged(), registry, metadata={"steps": STEPS}, dtype="float16")


if __name__ == "__main__":
    main()
