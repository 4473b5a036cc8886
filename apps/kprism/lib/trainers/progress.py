# SPDX-License-Identifier: Apache-2.0
"""Progress of the training in a file: the training process writes it, the server reads it for /info/.

Both viewers read `epoch`, `total_epochs`, `best_metric` and, at the end, `total_time`; users read `message`. `curve` is
[epoch, mean Dice in training] for each epoch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from kprism_model.training.validation import SERVING_MODES
from lib.files import read_json, write_json

EPOCHS = 20
"""Equal parts of the time budget: `epoch` of `total_epochs` is the share of the time that is spent."""


class Progress:
    """Writes `train_stats.json` in `folder`, from the start of the training to its end."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "train_stats.json"
        self._started = time.time()
        self._stats: dict[str, Any] = {}
        self._epoch = -1

    @staticmethod
    def read(folder: Path) -> dict[str, Any]:
        """What was written last; empty if there is no file or it is damaged."""
        try:
            return read_json(folder / "train_stats.json") or {}
        except ValueError:
            return {}

    def begin(self, message: str, **stats: Any) -> None:
        """Start a new training."""
        self._epoch = 0
        self._stats = {"epoch": 0, "total_epochs": EPOCHS, "best_metric": 0.0, "train": {}, "eval": {}, **stats}
        self.update(message)

    def update(self, message: str, **stats: Any) -> None:
        """Write what the training is doing now."""
        self._stats |= {"message": message, "current_time": self._elapsed(), **stats}
        write_json(self._path, self._stats)

    def advance(self, share: float, scores: Mapping[str, float]) -> None:
        """Note that a share of the time budget is spent; the file is written when the next epoch is reached.

        `scores` are the mean losses and Dice values of the latest steps by name.
        """
        epoch = min(EPOCHS, int(share * EPOCHS))
        if epoch > self._epoch:
            self._epoch = epoch
            known = {name: round(value, 4) for name, value in scores.items() if value == value}
            dice = [value for name, value in known.items() if name in SERVING_MODES]
            if dice:
                self._stats["curve"] = [*self._stats.get("curve", []), [epoch, round(sum(dice) / len(dice), 4)]]
            self.update("training", epoch=epoch, train=known)

    def end(self, message: str, **stats: Any) -> None:
        """End the training."""
        self._stats.pop("current_time", None)
        self._stats |= {"epoch": EPOCHS, "message": message, "total_time": self._elapsed(), **stats}
        write_json(self._path, self._stats)

    def _elapsed(self) -> str:
        return str(timedelta(seconds=int(time.time() - self._started)))
