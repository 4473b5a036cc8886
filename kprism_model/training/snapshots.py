# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a training on a borrowed machine: a few small files, whole at any moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kprism_model.checkpoint import save_checkpoint
from kprism_model.data.slices import SliceStore
from kprism_model.files import write_bytes
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.slice_validation import column_means, to_markdown, validate_slices
from kprism_model.training.step_log import LOG_NAME
from kprism_model.training.trainer import Trainer

MAX_BYTES = 15 * 2**20
"""Limit of the averaged weights in half precision."""

TABLE_NAME = "validation.md"
WEIGHTS_NAME = "ema"


class SnapshotWriter:
    """Writes the averaged weights, the log and Dice on `validation` slices into `folder`, replacing older ones.

    The weights are a checkpoint in half precision, "ema-STEP"; an older one is removed when the new one is complete, so
    that there is always a matching pair of files. `metadata` gives what the checkpoint says about the training.
    ValueError if the weights would take more than `MAX_BYTES` bytes.
    """

    def __init__(
        self, folder: Path, validation: SliceStore | None, metadata: Callable[[Trainer], dict[str, Any]]
    ) -> None:
        self.folder = folder
        self._validation, self._metadata = validation, metadata
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, trainer: Trainer) -> None:
        """Write a snapshot of the averaged weights as they are now."""
        self.write(trainer, trainer.averaged(), self._metadata(trainer))

    def write(self, trainer: Trainer, model: KPrism, metadata: dict[str, Any]) -> None:
        """Write a snapshot with `model` as the result of the training so far."""
        check_size(model)
        registry = trainer.sampler.registry
        if self._validation is not None and self._validation.sets:
            rows = validate_slices(Predictor(model, registry, device=trainer.device), self._validation)
            metadata = {**metadata, "held out": column_means(rows)}
            title = f"Dice on held-out slices after {trainer.step} steps, {trainer.seconds / 60:.1f} minutes\n\n"
            write_bytes(self.folder / TABLE_NAME, (title + to_markdown(rows)).encode())
        name = f"{WEIGHTS_NAME}-{trainer.step}"
        save_checkpoint(self.folder / name, model, registry, metadata=metadata, dtype="float16")
        if (trainer.folder / LOG_NAME).exists():
            write_bytes(self.folder / LOG_NAME, (trainer.folder / LOG_NAME).read_bytes())
        for old in self.folder.glob(f"{WEIGHTS_NAME}-*"):
            if old.stem != name:
                old.unlink()


def check_size(model: KPrism) -> None:
    """ValueError if a network is too large for a snapshot."""
    size = sum(value.numel() * (2 if value.ndim > 1 else 4) for value in model.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(f"the network takes {size:,} bytes in half precision, --keep allows {MAX_BYTES:,}")
