# SPDX-License-Identifier: Apache-2.0
"""The log of a training, a line of JSON for each step, and records whose values are still on the device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kprism_model.files import write_bytes

LOG_NAME = "log.jsonl"

Record = Mapping[str, float | Tensor]
"""What a step logs; a tensor holds one value, which the device may still be computing."""

NOT_SCORES = ("step", "rate", "loss", "size")
"""Entries of a record that are not Dice scores."""


class PendingRecords:
    """Records of steps that wait until the values of `every` steps are fetched from the device at once."""

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"records must be fetched every 1 or more steps, not {every}")
        self.every = every
        self._pending: list[Record] = []

    def add(self, record: Record) -> list[dict[str, float]]:
        """Add a record; returns all pending records as numbers when there are `every` of them, else none."""
        self._pending.append(record)
        return self.take() if len(self._pending) >= self.every else []

    def take(self) -> list[dict[str, float]]:
        """All pending records as numbers."""
        records, self._pending = self._pending, []
        tensors = [value for record in records for value in record.values() if isinstance(value, Tensor)]
        numbers = iter(torch.stack([tensor.double() for tensor in tensors]).tolist() if tensors else ())
        return [
            {name: next(numbers) if isinstance(value, Tensor) else value for name, value in record.items()}
            for record in records
        ]


def append_record(folder: Path, record: Mapping[str, float]) -> None:
    """Write a step to the log in `folder`."""
    with (folder / LOG_NAME).open("a") as log:
        log.write(json.dumps({name: round(value, 6) for name, value in record.items()}) + "\n")


def truncate_log(folder: Path, step: int) -> None:
    """Remove the steps from `step` on, which a resumed training makes again."""
    path = folder / LOG_NAME
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] < step]
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
