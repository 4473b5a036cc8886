# SPDX-License-Identifier: Apache-2.0
"""How the network of the paper is trained: every number of the published configuration, and where it comes from.

"Paper" is arXiv 2509.25594, "code" is github.com/bangwayne/K-Prism at commit bf86975 (`kprism/config`, `train.py`,
`kprism/Trainwrapper.py`, `kprism/modeling/loss.py`, `kprism/data_mapper`). Where they differ:

- Modes: the code draws semantic, in-context and interactive with 0.3, 0.4 and 0.3, the paper is reported with 0.3, 0.3
  and 0.4. We take the code's, because it is what was run.
- Iterations: the code's configuration says 1, its README 3. We take 3: with 1, no mask is ever corrected in training.
- Epochs: the code's sampler starts from the same seed in every epoch, so all 75 epochs repeat one list, drawn with
  replacement, and many slices are never seen. We draw anew in each step.
- References: the code may draw the image itself as its own reference. We never do, nor another one of the same patient.
- Batches: each process of the code draws its own mode, without a seed. Here a step has one mode in all processes.
- Warm-up: the scheduler that the code names usually starts at a rate of 0, which wastes the first epoch. We start at a
  tenth of the rate.
- Dropout: the code's encoder drops 0.1 of its attention and of its projections. Ours has no dropout.
- Intensities: the code gives (x / 255 - 0.26) / 0.30 to the network, we x / 255. The first layer of the published
  encoder is a batch normalization, which makes the two the same.
- Clicks: the code's own rule is not public. Its predecessor (github.com/bangwayne/Verse) clicks on the centre of mass
  of the inner part of the largest missed or spurious component. Ours clicks on the deepest pixel of that component.
- Image sides: 512 in both. 256 is possible in the code's network, but no published configuration has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kprism_model.network.config import SIZE_MULTIPLE, KPrismConfig
from kprism_model.training.schedule import MODES

CLICK_SLOTS = 20
"""Clicks that the published network takes at most (code)."""


@dataclass(frozen=True)
class PublishedRecipe:
    """The published numbers; ValueError for values that no training can have, naming the field.

    preset: "base" is the published network, with 5 experts (both). size: long side in pixels (both). batch: images in a
    step, all processes together (paper: 16 on 8 GPUs; code: 2 a GPU). epochs: passes over as many images as the sets
    have slices (both). learning_rate: of AdamW (both); weight_decay and clip_norm: code. warmup_epochs: linear, then a
    cosine to final_rate of the peak (both), stepped once an epoch (code). dice_weight, bce_weight: for each of the
    decoder's layers at full size, summed (code; paper: cross-entropy + Dice). mode_shares: of `MODES` (code).
    iterations: masks in a step, each but the first after a click on the largest error of the one before (README of the
    code); later_weight: of their losses, which are summed (code). In-context images have one reference (both).
    """

    preset: str = "base"
    size: int = 512
    batch: int = 16
    epochs: int = 75
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup_epochs: int = 10
    final_rate: float = 0.1
    clip_norm: float = 3.0
    dice_weight: float = 5.0
    bce_weight: float = 5.0
    mode_shares: tuple[float, float, float] = (0.3, 0.4, 0.3)
    iterations: int = 3
    later_weight: float = 0.8

    def __post_init__(self) -> None:
        """Refuse what no training can have."""
        KPrismConfig.preset(self.preset)  # names the presets
        if self.size < SIZE_MULTIPLE or self.size % SIZE_MULTIPLE:
            raise ValueError(f"PublishedRecipe.size must be a multiple of {SIZE_MULTIPLE}, got {self.size}")
        for name in ("batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"PublishedRecipe.{name} must be 1 or more, got {getattr(self, name)}")
        if self.warmup_epochs < 0:
            raise ValueError(f"PublishedRecipe.warmup_epochs must be 0 or more, got {self.warmup_epochs}")
        if not 1 <= self.iterations <= CLICK_SLOTS:
            raise ValueError(f"PublishedRecipe.iterations must be 1 to {CLICK_SLOTS}, got {self.iterations}")
        shares = self.mode_shares
        if len(shares) != len(MODES) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"PublishedRecipe.mode_shares must be three chances that sum to 1, got {shares}")

    def network(self, **changes: Any) -> KPrismConfig:
        """The network that is trained."""
        return KPrismConfig.preset(self.preset, native_size=self.size, **changes)

    def rate_at(self, epoch: int) -> float:
        """Learning rate of a whole epoch, counted from 0: a tenth of the peak, ..., the peak, then the cosine."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * (epoch + 1) / self.warmup_epochs
        share = min(1.0, (epoch - self.warmup_epochs) / max(1, self.epochs - self.warmup_epochs))
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * share)) / 2)

    def steps_per_epoch(self, slices: int) -> int:
        """Steps in which as many images are drawn as the data sets have slices."""
        return math.ceil(slices / self.batch)

    def steps_in_all(self, slices: int) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch(slices)
