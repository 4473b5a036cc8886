# SPDX-License-Identifier: Apache-2.0
"""What a training step does without a wait for the device: logging some steps late, skipping broken gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Record = Mapping[str, float | Tensor]
"""What a step logs; tensors hold one value each and may still be in the making."""


class PendingRecords:
    """Records of steps, kept until their tensors are fetched from the device, those of `every` steps at once."""

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"records must be fetched every 1 or more steps, not {every}")
        self.every = every
        self._kept: list[Record] = []

    def add(self, record: Record) -> list[dict[str, float]]:
        """Keep a record; returns all that are kept, as numbers, if it is time to fetch them, else none."""
        self._kept.append(record)
        if len(self._kept) < self.every:
            return []
        kept, self._kept = self._kept, []
        tensors = [value for record in kept for value in record.values() if isinstance(value, Tensor)]
        numbers = iter(torch.stack([tensor.double() for tensor in tensors]).tolist() if tensors else ())
        return [
            {name: next(numbers) if isinstance(value, Tensor) else value for name, value in record.items()}
            for record in kept
        ]


def step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Take a step unless the gradients' `norm` () is infinite or NaN; with a fused optimizer the device decides."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif norm.isfinite():
        optimizer.step()
