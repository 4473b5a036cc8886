# SPDX-License-Identifier: Apache-2.0
"""A batch of training images, with the targets of the three modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

NO_CLASS = -1
"""Class index of an object that does not belong to a trained class."""

ABSENT_CLASSES_PER_IMAGE = 2
"""Number of absent structures that are predicted for each image, so that the network learns presence."""


@dataclass(frozen=True)
class SequenceBatch:
    """n sequences of T slices.

    images: float32 (n, T, 3, S, S) in [0, 1]. masks: float32 (n, T, 1, S, S) of 0 and 1; the first slice of each
    sequence shows the structure, the others may be empty.
    """

    images: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Batch:
    """n images in groups that show one structure each, with the targets of the three modes.

    images: float32 (n, 3, S, S) in [0, 1]. masks: float32 (n, 1, S, S) of 0 and 1, the structure of the image's group;
    empty if it is absent. class_index: int64 (n,), the structure's row in the registry or `NO_CLASS`. references: int64
    (n, R), numbers of images of the same group, from other patients, that show the structure (for objects made of
    regions: other views of the same slice); a row of -1 if there are none. objects: float32 (n, 1, S, S), what the
    simulated user clicks on: the structure, a union of structures or a part of one; empty if there is nothing to click
    on. absent_classes: int64 (n, `ABSENT_CLASSES_PER_IMAGE`), registry rows of structures that are not in the image; -1
    if none is known. dataset: the name of each image's data set. kinds: the kind of each image
    (`kprism_model.data.kinds`), empty for synthetic images. sequences: slices of volumes, for propagation.
    """

    images: Tensor
    masks: Tensor
    class_index: Tensor
    references: Tensor
    objects: Tensor
    absent_classes: Tensor
    dataset: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    sequences: SequenceBatch | None = None

    def to(self, device: torch.device) -> Self:
        """The batch on another device; a copy from the CPU to a GPU does not wait for it."""
        return self if device == self.images.device else self._changed(lambda value: _send(value, device))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which a GPU copies without waiting; called by PyTorch's data loader."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The batch with all its tensors changed."""
        tensors: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        if self.sequences is None:
            return replace(self, **tensors)
        sequences = SequenceBatch(change(self.sequences.images), change(self.sequences.masks))
        return replace(self, **tensors, sequences=sequences)


def _send(value: Tensor, device: torch.device) -> Tensor:
    if value.device.type == "cpu" and device.type == "cuda":
        return (value if value.is_pinned() else value.pin_memory()).to(device, non_blocking=True)
    return value.to(device)
