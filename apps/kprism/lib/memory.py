# SPDX-License-Identifier: Apache-2.0
"""The last mask of every label of an image, so that clicks refine what the user sees although no viewer sends a mask.

Requests carry all their clicks, so the answer must not depend on how often one was asked. Clicks are therefore applied
to the mask that was there before the first of them: a request that shares a click with the one before belongs to the
same round and starts from the same mask, one with none of the earlier clicks starts a new round from the last answer.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.cache import ByteCache

Round = frozenset[Hashable]


@dataclass(frozen=True)
class PackedMask:
    """A mask (i, j, k) at one bit a voxel."""

    bits: NDArray[np.uint8]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> PackedMask:
        """Pack a mask, x fastest, the order in which masks of images are kept."""
        return cls(np.packbits(mask.ravel(order="F")), mask.shape)

    def mask(self) -> NDArray[np.bool_]:
        """The mask again, x fastest."""
        size = int(np.prod(self.shape))
        return np.unpackbits(self.bits, count=size).view(bool).reshape(self.shape, order="F")


@dataclass(frozen=True)
class Entry:
    """Of one label: the mask before this round of clicks, the clicks, and the answer to them."""

    before: PackedMask | None
    clicks: Round
    answer: PackedMask


class MaskMemory:
    """Masks by (client, image, label), within a budget in bytes; what is forgotten counts as no mask."""

    def __init__(self, budget: int) -> None:
        self._cache = ByteCache(budget)

    def before(self, key: Hashable, clicks: Round) -> NDArray[np.bool_] | None:
        """The mask to which `clicks` are to be applied, or None if there is none."""
        entry: Entry | None = self._cache.get(key)
        if entry is None:
            return None
        packed = entry.before if entry.clicks & clicks else entry.answer
        return packed.mask() if packed else None

    def last(self, key: Hashable) -> NDArray[np.bool_] | None:
        """The last answer, or None."""
        entry: Entry | None = self._cache.get(key)
        return entry.answer.mask() if entry else None

    def put(
        self,
        key: Hashable,
        answer: NDArray[np.bool_],
        before: NDArray[np.bool_] | None = None,
        clicks: Round = frozenset(),
    ) -> None:
        """Remember an answer, the mask that it refined and the clicks that it followed."""
        packed_before = PackedMask.of(before) if before is not None else None
        entry = Entry(packed_before, clicks, PackedMask.of(answer))
        size = entry.answer.bits.nbytes + (packed_before.bits.nbytes if packed_before else 0)
        self._cache.put(key, entry, size)
