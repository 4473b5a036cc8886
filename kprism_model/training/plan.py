# SPDX-License-Identifier: Apache-2.0
"""What a training run does and for how long: the schedules of learning rate and image size, the precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from kprism_model.network.config import SIZE_MULTIPLE
from kprism_model.training.schedule import StepSettings

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class TrainingPlan:
    """Hyperparameters of a training run.

    `minutes` is the time budget over all resumptions, or `steps` if they are given; learning rate and image size follow
    the share of it that is spent. `sizes` are pairs (share of the budget from which it holds, side in pixels). A step
    takes the mean gradient of `accumulate` batches of `batch_size` images in each process. `trunk_rate` is the learning
    rate of a pretrained image encoder relative to that of the rest; from the share `decay_from` on, the learning rate
    falls to `final_rate` of the peak. `precision`
    "auto" is bfloat16 autocast where the device computes in it, else float32. With each batch, `sequences` of
    `sequence_length` neighbouring slices are propagated, with `propagation_weight` for that part of the loss.
    """

    minutes: float = 90.0
    batch_size: int = 8
    accumulate: int = 1
    sizes: tuple[tuple[float, int], ...] = ((0.0, 128), (0.65, 192))
    learning_rate: float = 1e-3
    trunk_rate: float = 0.3
    weight_decay: float = 0.01
    warmup_steps: int = 150
    decay_from: float = 0.0
    final_rate: float = 0.02
    clip_norm: float = 3.0
    ema_decay: float = 0.998
    precision: Precision = "auto"
    seed: int = 0
    sequences: int = 0
    sequence_length: int = 6
    propagation_weight: float = 1.0
    step: StepSettings = field(default_factory=StepSettings)
    save_minutes: float = 3.0
    steps: int | None = None

    def size_at(self, share: float) -> int:
        """Side in pixels of the training images when `share` of the budget is spent."""
        return next(size for start, size in reversed(self.sizes) if share >= start)

    def rate_at(self, step: int, share: float) -> float:
        """Learning rate: linear warm-up, then from `decay_from` on a cosine down to `final_rate` of the peak."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        decayed = max(0.0, min(share, 1.0) - self.decay_from) / (1 - self.decay_from)
        cosine = self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * decayed)) / 2
        return self.learning_rate * warm * cosine


def coarse_size(native: int) -> int:
    """Image side of the first, cheaper part of a training: two thirds of the native size, a multiple of 32."""
    return max(SIZE_MULTIPLE, round(2 * native / 3 / SIZE_MULTIPLE) * SIZE_MULTIPLE)


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The autocast type for a device, None for plain float32; ValueError for an unknown precision.

    "auto" takes bfloat16 only where the hardware multiplies in it: CPUs without it emulate it many times slower.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        able = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and able) else None
