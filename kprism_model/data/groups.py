# SPDX-License-Identifier: Apache-2.0
"""Groups of training images that show one structure, and the references that they give each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.data.batch import ABSENT_CLASSES_PER_IMAGE, NO_CLASS
from kprism_model.data.slices import SliceSet


class TrainingSlice(NamedTuple):
    """A slice on the store's canvas, the mask of a structure, and an object to click on."""

    slice_set: SliceSet
    row: int
    mask: NDArray[np.bool_]
    clicked: NDArray[np.bool_]

    @property
    def patient(self) -> tuple[str, int]:
        """A key of the patient that is unique among all data sets."""
        return self.slice_set.name, int(self.slice_set.patient[self.row])


class ImageGroup(NamedTuple):
    """The images of one structure at their final size, with masks, objects, patients and absent classes."""

    images: Tensor
    masks: Tensor
    objects: Tensor
    class_index: int
    patients: list[tuple[str, int]]
    absent_classes: list[list[int]]


def group_without_class(images: Tensor, masks: Tensor, name: str) -> ImageGroup:
    """A group without a class; each image counts as its own patient, so all others can be its references."""
    patients = [(name, -1 - row) for row in range(len(images))]
    return ImageGroup(images, masks, masks, NO_CLASS, patients, [[NO_CLASS] * ABSENT_CLASSES_PER_IMAGE] * len(images))


def draw_references(groups: Sequence[ImageGroup], count: int, rng: np.random.Generator) -> Tensor:
    """For each image, `count` images of its group that show the structure in another patient; int64 (n, count).

    If there are fewer, the first ones are repeated; if there are none, the row is -1.
    """
    rows: list[list[int]] = []
    start = 0
    for group in groups:
        shown = group.masks.flatten(1).any(dim=1).tolist()
        for patient in group.patients:
            fit = [start + other for other, owner in enumerate(group.patients) if shown[other] and owner != patient]
            order = [int(number) for number in rng.permutation(fit)]
            rows.append((order * count)[:count] if order else [-1] * count)
        start += len(group.patients)
    return torch.tensor(rows)
