# SPDX-License-Identifier: Apache-2.0
"""Batches for fine-tuning: every image comes with the masks of all structures that were annotated in it.

An image is encoded once for all of its structures, which is most of the work of a training step. One structure, the
focus, is also given by references and clicks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.data.augment import Augmentation, augment_batch
from kprism_model.data.batch import ABSENT_CLASSES_PER_IMAGE, NO_CLASS, Batch
from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.data.windows import crop_to_windows, random_windows

FOCUS_SHOWN = 0.75
"""Chance that an image is drawn from the slices that show the structure in focus."""

WINDOW = 0.15
"""Chance that a batch is seen in windows around its structures, as in corrections."""

Weights = Mapping[str, Mapping[int, float]]
"""Case name -> slice number -> how often the slice is drawn, relative to 1 for the others."""


@dataclass(frozen=True)
class AnnotatedBatch(Batch):
    """A `Batch` of the structure in focus, with the masks of all K structures annotated in these images.

    structure_masks: float32 (n, K, S, S) of 0 and 1. structure_classes: int64 (K,), their rows in the registry.
    """

    structure_masks: Tensor = field(default_factory=lambda: torch.empty(0))
    structure_classes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class AnnotatedSampler:
    """Draws images of cases with the same annotated structures, and a structure of them as the focus.

    `without` are patients that are not drawn. `weights` say which slices are drawn more often. A batch depends only on
    `seed` and its step. ValueError if no slice is left.
    """

    def __init__(
        self,
        store: SliceStore,
        registry: ClassRegistry,
        *,
        seed: int,
        without: Collection[str] = (),
        weights: Weights | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.store, self.registry = store, registry
        self._seed, self._augmentation = seed, augmentation or Augmentation()
        self._parts = [part for part in (_Part.of(one, without, weights or {}) for one in store.sets) if part.shown]
        if not self._parts:
            raise ValueError(f"no slice in {store.path} shows {MINIMUM_PIXELS} pixels of a structure to learn from")
        sizes = np.array([len(part.rows) for part in self._parts], float)
        self._shares = sizes / sizes.sum()

    def batch(self, n: int, *, step: int, size: int) -> AnnotatedBatch:
        """The batch of a step: n augmented images of `size` x `size` pixels."""
        rng = np.random.default_rng([self._seed, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        part = self._parts[rng.choice(len(self._parts), p=self._shares)]
        focus = list(part.shown)[rng.integers(len(part.shown))]
        rows = np.array([part.draw(focus, rng) for _ in range(n)])
        images, masks = self._augmented(part.slices, rows, size, rng, generator)
        classes = torch.tensor([self.registry.index(name) for name in part.slices.classes.values()])
        mask = masks[:, focus : focus + 1]
        return AnnotatedBatch(
            images=images,
            masks=mask,
            class_index=classes[focus].expand(n).clone(),
            references=_references(mask, part.slices.patient[rows], rng),
            objects=mask,
            absent_classes=torch.full((n, ABSENT_CLASSES_PER_IMAGE), NO_CLASS),
            dataset=(part.slices.name,) * n,
            kinds=("",) * n,
            structure_masks=masks,
            structure_classes=classes,
        )

    def _augmented(
        self, slices: SliceSet, rows: NDArray[np.int64], size: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(slices.images[rows].transpose(0, 3, 1, 2).copy()).expand(-1, 3, -1, -1).contiguous()
        values = np.array(list(slices.classes)).reshape(1, -1, 1, 1)
        masks = torch.from_numpy(slices.labels[rows][:, None] == values)
        content = torch.from_numpy(slices.content[rows])
        if rng.random() < WINDOW:
            windows = random_windows(masks.any(1, keepdim=True), None, size, rng)
            images, masks, content = crop_to_windows(images, masks, content, windows)
        return augment_batch(images, masks, generator, size=size, content=content, settings=self._augmentation)


def _references(masks: Tensor, patients: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """For each image the number of another patient's image that shows the structure, (n, 1); -1 if there is none."""
    shown = masks.flatten(1).any(1).numpy()
    chosen = []
    for patient in patients:
        others = np.flatnonzero(shown & (patients != patient))
        chosen.append([int(rng.choice(others)) if len(others) else -1])
    return torch.tensor(chosen)


@dataclass(frozen=True)
class _Part:
    """The slices of a set that may be drawn: `rows`, their chances, and the same for those that show a structure."""

    slices: SliceSet
    rows: NDArray[np.int64]
    chances: NDArray[np.float64]
    shown: dict[int, tuple[NDArray[np.int64], NDArray[np.float64]]]

    @classmethod
    def of(cls, slices: SliceSet, without: Collection[str], weights: Weights) -> _Part:
        patients = np.array(slices.patients)[slices.case]
        rows = np.flatnonzero(~np.isin(patients, list(without)))
        names = [slices.case_names[case] for case in slices.case]
        weight = np.array(
            [weights.get(name, {}).get(int(number), 1.0) for name, number in zip(names, slices.number, strict=True)]
        )
        shown = {}
        for structure in range(len(slices.classes)):
            own = rows[slices.pixels[rows, structure] >= MINIMUM_PIXELS]
            if len(own):
                shown[structure] = own, _chances(weight[own])
        return cls(slices, rows, _chances(weight[rows]), shown)

    def draw(self, focus: int, rng: np.random.Generator) -> int:
        """A slice, with the chance `FOCUS_SHOWN` one that shows the structure in focus for certain."""
        rows, chances = self.shown[focus] if rng.random() < FOCUS_SHOWN else (self.rows, self.chances)
        return int(rng.choice(rows, p=chances))


def _chances(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return weights / weights.sum() if len(weights) else weights
