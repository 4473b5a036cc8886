# SPDX-License-Identifier: Apache-2.0
"""The images of one step: as they are read, and as the network sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from kprism_model.published.training.augmentation import Draws, augment


@dataclass(frozen=True)
class StepBatch:
    """n images of one mode for the network.

    images: float32 (m, 3, S, S) in [0, 1]; masks: float32 (m, 1, S, S) of 0 and 1. m is n, or 2 n in the mode
    "in_context": then image n + i is the reference of image i. class_index: int64 (n,), rows of the class registry.
    """

    mode: str
    images: Tensor
    masks: Tensor
    class_index: Tensor


@dataclass(frozen=True)
class RawBatch:
    """The same as it is stored: uint8 images (m, 3, S, S) in 0..255 and masks (m, 1, S, S) of 0 and 1.

    content: (m, 2) rows and columns that are not padding. draws: how each image is changed, on the CPU.
    """

    mode: str
    images: Tensor
    masks: Tensor
    class_index: Tensor
    content: Tensor
    draws: Draws

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which a GPU copies without waiting; called by PyTorch's data loader."""
        return replace(
            self,
            images=self.images.pin_memory(),
            masks=self.masks.pin_memory(),
            class_index=self.class_index.pin_memory(),
        )

    def augmented(self, device: torch.device) -> StepBatch:
        """The batch for the network, sent to `device` as it is stored and changed there, without waiting for it."""
        pin = device.type == "cuda" and not self.images.is_pinned()
        held = self.pin_memory() if pin else self
        images, masks, index = (
            part.to(device, non_blocking=True) for part in (held.images, held.masks, held.class_index)
        )
        return StepBatch(self.mode, *augment(images, masks, self.content, self.draws), index)
