# SPDX-License-Identifier: Apache-2.0
"""Images to which the kind head is fitted: of every data set, and of no kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from kprism_model.data.augment import Augmentation, augment_batch
from kprism_model.data.kinds import kind_name
from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.synthetic import synthetic_group

BATCH_SIZE = 8


def sets_by_kind(sets: Sequence[SliceSet]) -> list[SliceSet]:
    """The sets in the order of the centres: by kind, those of one kind as given."""
    return sorted(sets, key=kind_name)


class KindImages:
    """Draws augmented images (n, 3, size, size) from the data sets of a store, and images that show nothing."""

    def __init__(self, store: SliceStore, size: int, seed: int, augmentation: Augmentation) -> None:
        self.sets = sets_by_kind(store.sets)
        self._side, self._size, self._augmentation = store.size, size, augmentation
        self._rng = np.random.default_rng(seed)
        self._generator = Generator().manual_seed(seed)

    def batches(self, images: int) -> Iterator[tuple[int, Tensor]]:
        """Batches of `images` images of each of the G sets in the order of `sets`, and as many of none.

        Each batch comes with the index of its set, G for none.
        """
        for start in range(0, images, BATCH_SIZE):
            count = min(BATCH_SIZE, images - start)
            for group, part in enumerate(self.sets):
                yield group, self.slices([part] * count)
            yield len(self.sets), self.of_no_kind(count)

    def slices(self, parts: Sequence[SliceSet]) -> Tensor:
        """A random slice of each of `parts`."""
        side = self._side
        canvas = np.zeros((len(parts), 3, side, side), dtype=np.uint8)
        content = np.zeros((len(parts), 2), dtype=np.int64)
        for index, part in enumerate(parts):
            row = self._rng.integers(len(part))
            canvas[index] = part.images[row].transpose(2, 0, 1)
            content[index] = part.content[row]
        images, _ = augment_batch(
            torch.from_numpy(canvas),
            torch.zeros(len(parts), 1, side, side, dtype=torch.bool),
            self._generator,
            size=self._size,
            content=torch.from_numpy(content),
            settings=self._augmentation,
        )
        return images

    def of_no_kind(self, count: int) -> Tensor:
        """Images of no kind: half of them synthetic, the others slices whose parts are shuffled."""
        chosen = self._rng.integers(len(self.sets), size=(count + 1) // 2)
        shuffled = shuffled_images(self.slices([self.sets[number] for number in chosen]), self._generator)
        if count == 1:
            return shuffled
        return torch.cat([shuffled, synthetic_group(count // 2, self._size, self._generator)[0]])


def shuffled_images(images: Tensor, generator: Generator) -> Tensor:
    """Images (n, 3, S, S) inverted and blurred, with their sixteen parts in random order."""
    blurred = F.avg_pool2d(F.pad(1 - images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    side = images.shape[-1] // 4
    parts = F.unfold(blurred, side, stride=side)
    return F.fold(parts[:, :, torch.randperm(16, generator=generator)], images.shape[-2:], side, stride=side)
