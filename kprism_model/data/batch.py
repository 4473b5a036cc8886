# SPDX-License-Identifier: Apache-2.0
"""A batch of training images, and what the three modes ask of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_CLASS = -1
"""Class index of an object that is no trained class."""

ABSENT_CLASSES_PER_IMAGE = 2
"""Structures that each image is known to lack and is asked about, so that presence is learned."""


@dataclass(frozen=True)
class Batch:
    """n images in groups that show one structure each, with what the three modes ask of them.

    images: float32 (n, 3, S, S) in [0, 1]. masks: float32 (n, 1, S, S) of 0 and 1, the structure of the image's group,
    empty where the image lacks it. class_index: int64 (n,), the structure's row in the registry or `NO_CLASS`.
    references: int64 (n, R), numbers of images of the same group, of other patients, that show the structure; -1
    throughout the row where there are none; other views of the same slice where the object is made of
    its regions. objects: float32 (n, 1, S, S), what an annotator clicks on: the structure, a union of structures or one
    part of one; empty where there is nothing to click on. lacking: int64 (n, `ABSENT_CLASSES_PER_IMAGE`),
    rows in the registry of structures that are not in the image; -1 where none is known. dataset: the name of each
    image's data set. kinds: the kind of each image (`kprism_model.data.kinds`), empty for synthetic ones.
    """

    images: Tensor
    masks: Tensor
    class_index: Tensor
    references: Tensor
    objects: Tensor
    absent_classes: Tensor
    dataset: tuple[str, ...]
    kinds: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on another device; from the CPU to a GPU without waiting for it."""
        if device == self.images.device:
            return self
        moved = {name: _send(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Batch(**{**vars(self), **moved})


def _send(value: Tensor, device: torch.device) -> Tensor:
    if value.device.type == "cpu" and device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
