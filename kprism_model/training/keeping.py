# SPDX-License-Identifier: Apache-2.0
"""What is worth keeping of a training on a lent machine: a few small files, whole at any moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kprism_model.checkpoint import save_checkpoint
from kprism_model.data.slices import SliceStore
from kprism_model.files import write_bytes
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.held_out import means, measure, to_markdown
from kprism_model.training.trainer import LOG_NAME, Trainer

KEPT_LIMIT = 15 * 2**20
"""Bytes that the tensors of the averaged weights may take in half precision."""

TABLE_NAME = "validation.md"
WEIGHTS_NAME = "ema"


class Keeper:
    """Puts the averaged weights, the log and Dice on `held_out` slices into `folder`, replacing what is there.

    The weights are a checkpoint in half precision, "ema-STEP"; older ones go when the new one is whole, so that there
    is always a matching pair of files. `metadata` tells what the checkpoint says of the training. ValueError
    if the weights would take more than `KEPT_LIMIT` bytes.
    """

    def __init__(
        self, folder: Path, held_out: SliceStore | None, metadata: Callable[[Trainer], dict[str, Any]]
    ) -> None:
        self.folder = folder
        self._held_out, self._metadata = held_out, metadata
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, trainer: Trainer) -> None:
        """Keep the averaged weights as they are now."""
        self.keep(trainer, trainer.averaged(), self._metadata(trainer))

    def keep(self, trainer: Trainer, model: KPrism, metadata: dict[str, Any]) -> None:
        """Keep `model` as what the training has come to."""
        check_size(model)
        registry = trainer.sampler.registry
        if self._held_out is not None and self._held_out.sets:
            rows = measure(Predictor(model, registry, device=trainer.device), self._held_out)
            metadata = {**metadata, "held out": means(rows)}
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
    """ValueError if a network is too large to be kept."""
    taken = sum(value.numel() * (2 if value.ndim > 1 else 4) for value in model.state_dict().values())
    if taken > KEPT_LIMIT:
        raise ValueError(f"the network takes {taken:,} bytes in half precision, --keep allows {KEPT_LIMIT:,}")
