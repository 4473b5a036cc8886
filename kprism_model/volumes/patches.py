# SPDX-License-Identifier: Apache-2.0
"""Probability maps of one structure in little memory: only the box where it may be, in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.components import bounding_box
from kprism_model.predictor import THRESHOLD

NEGLIGIBLE = 0.01
"""Probabilities below this are stored as zero."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A probability map (row, column) of an image of `size`: float16 `values` from `corner` on, zero elsewhere.

    All later results are computed from the patch, never from the map that it was made of. So a result from the store
    equals one that is computed again.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    values: NDArray[np.float16]

    @classmethod
    def of(cls, probability: NDArray[Any]) -> Patch:
        """The patch of a map of probabilities (row, column), or of a mask."""
        size = (probability.shape[0], probability.shape[1])
        box = bounding_box(probability >= NEGLIGIBLE)
        if box is None:
            return cls.empty(size)
        crop = probability[box]
        values = np.where(crop >= NEGLIGIBLE, crop, 0).astype(np.float16)
        return cls(size, (box[0].start, box[1].start), values)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Patch:
        """A map of zeros."""
        return cls(size, (0, 0), np.zeros((0, 0), np.float16))

    @property
    def box(self) -> tuple[slice, slice]:
        """The index of the values in the whole map."""
        (top, left), (rows, columns) = self.corner, self.values.shape
        return slice(top, top + rows), slice(left, left + columns)

    @property
    def any(self) -> bool:
        """Whether the mask holds at least one pixel."""
        return bool((self.values >= THRESHOLD).any())

    @property
    def is_mask(self) -> bool:
        """Whether all values are 0 or 1."""
        return bool(((self.values == 0) | (self.values == 1)).all())

    def probability(self) -> NDArray[np.float32]:
        """The whole map."""
        whole = np.zeros(self.size, np.float32)
        whole[self.box] = self.values
        return whole

    def mask(self) -> NDArray[np.bool_]:
        """The pixels whose probability is at least one half."""
        whole = np.zeros(self.size, bool)
        whole[self.box] = self.values >= THRESHOLD
        return whole
