# SPDX-License-Identifier: Apache-2.0
"""Trained weights that raised the mean Dice but were not published because a single structure lost too much.

The next training starts from them, so that it need not learn the same again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kprism_model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from kprism_model.training.weights import descends

if TYPE_CHECKING:
    from kprism_model.classes import ClassRegistry
    from kprism_model.network.kprism import KPrism

logger = logging.getLogger(__name__)


class UnpublishedWeights:
    """The one set of such weights in `folder`; it is used only on top of the version that it was trained from."""

    def __init__(self, folder: Path) -> None:
        self._stem = folder / "unpublished"

    def save(self, model: KPrism, registry: ClassRegistry, parent: Checkpoint) -> None:
        """Save weights that were trained from `parent`, in place of those that were saved before."""
        self.remove()
        save_checkpoint(self._stem, model, registry, metadata={"parent": parent.weights_version})

    def remove(self) -> None:
        """Delete the saved weights."""
        for suffix in (".json", ".safetensors"):
            self._stem.with_suffix(suffix).unlink(missing_ok=True)

    def start(self, served: Checkpoint, *, device: str = "cpu") -> Checkpoint:
        """The start of a training on top of `served`: the saved weights if they descend from it, else `served`."""
        if not self._stem.with_suffix(".json").exists():
            return served
        try:
            saved = load_checkpoint(self._stem, device=device)
        except CheckpointError as error:
            logger.warning("The last training's unpublished weights cannot be used: %s", error)
            return served
        fits = saved.metadata.get("parent") == served.weights_version and descends(saved, served)
        return saved if fits else served
