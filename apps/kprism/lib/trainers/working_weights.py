# SPDX-License-Identifier: Apache-2.0
"""Where trainings go on from: the weights of each fold of cross-validation, and those that combine them.

Beside the checkpoint of a fold, a folder has the state that its training ended with, so that the next one goes on as if
it had never ended. They are kept whether or not a version was published, so no training learns the same again. Each
says which patients it has seen: a fold's weights never saw the fold's patients.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from kprism_model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.kprism import KPrism
from kprism_model.training.run_state import EndState, has_state

logger = logging.getLogger(__name__)

FINAL = "final"
"""Name of the weights that have learned from all patients."""


def fold_name(fold: int) -> str:
    """Name of the weights that never saw the patients of a fold."""
    return f"fold{fold}"


class Start(NamedTuple):
    """Where a training starts: a checkpoint and, if it goes on from one, how that training ended."""

    checkpoint: Checkpoint
    end: EndState | None = None


class WorkingWeights:
    """The weights in `folder`; they belong to the shipped weights `base` and to the version `serving`.

    After an upgrade or a rollback they do not belong any more, and trainings start from what serves.
    """

    def __init__(self, folder: Path, *, base: str, serving: int) -> None:
        self.folder, self._base, self._serving = folder, base, serving

    def start(self, name: str, unseen: Collection[str], default: Checkpoint, *, device: str = "cpu") -> Start:
        """Where the training of `name` starts, so that patients in `unseen` were never seen.

        Its own weights; for a fold whose patients are all new, those of all patients; else `default`.
        """
        for candidate in dict.fromkeys((name, FINAL)):
            checkpoint = self._load(candidate, device)
            if checkpoint is not None and not set(checkpoint.metadata["patients"]) & set(unseen):
                return Start(checkpoint, self._end(candidate))
        return Start(default)

    def save(
        self,
        name: str,
        model: KPrism,
        registry: ClassRegistry,
        patients: Collection[str],
        state: Path | None,
        *,
        serving: int,
    ) -> None:
        """Write trained weights; `patients` are those they have seen, `serving` the version that serves from now on.

        The training's folder `state` is moved here; weights that were not trained themselves have none.
        """
        metadata = {"base": self._base, "serving": serving, "patients": sorted(patients)}
        shutil.rmtree(self.folder / name, ignore_errors=True)  # it does not belong to the new weights
        save_checkpoint(self.folder / name, model, registry, metadata=metadata)
        if state is not None:
            state.rename(self.folder / name)

    def _end(self, name: str) -> EndState | None:
        if not has_state(self.folder / name):
            return None
        try:
            return EndState.read(self.folder / name)
        except ValueError as error:
            logger.warning("The training starts from its last weights, but not where it ended: %s", error)
            return None

    def _load(self, name: str, device: str) -> Checkpoint | None:
        stem = self.folder / name
        if not stem.with_suffix(".json").exists():
            return None
        try:
            checkpoint = load_checkpoint(stem, device=device)
        except CheckpointError as error:
            logger.warning("The training cannot go on from its last weights: %s", error)
            return None
        belongs = checkpoint.metadata.get("base") == self._base and checkpoint.metadata.get("serving") == self._serving
        return checkpoint if belongs and "patients" in checkpoint.metadata else None
