# SPDX-License-Identifier: Apache-2.0
"""Trained weights that raised the mean but were not published, for a single structure lost too much: the next training
goes on from them, so that what was learned is not learned again each time.
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


class Unpublished:
    """The one set of such weights in `folder`; it counts only on top of the version that it was trained from."""

    def __init__(self, folder: Path) -> None:
        self._stem = folder / "unpublished"

    def keep(self, model: KPrism, registry: ClassRegistry, parent: Checkpoint) -> None:
        """Keep weights that were trained from `parent`, in place of those that were kept before."""
        self.forget()
        save_checkpoint(self._stem, model, registry, metadata={"parent": parent.weights_version})

    def forget(self) -> None:
        """Delete what was kept."""
        for suffix in (".json", ".safetensors"):
            self._stem.with_suffix(suffix).unlink(missing_ok=True)

    def start(self, served: Checkpoint, *, device: str = "cpu") -> Checkpoint:
        """What a training on top of `served` starts from: the kept weights if they are of it, else `served` itself."""
        if not self._stem.with_suffix(".json").exists():
            return served
        try:
            kept = load_checkpoint(self._stem, device=device)
        except CheckpointError as error:
            logger.warning("The last training's unpublished weights cannot be used: %s", error)
            return served
        fits = kept.metadata.get("parent") == served.weights_version and descends(kept, served)
        return kept if fits else served
