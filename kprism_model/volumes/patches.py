# SPDX-License-Identifier: Apache-2.0
"""Probability maps of one structure in little memory: only the box where it may be, in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.predictor import THRESHOLD

NEGLIGIBLE = 0.01
"""Probabilities below this are zero."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A probability map (row, column): float16 `values` from `corner` on, zero elsewhere.

    Masks and everything else are derived from a patch, never from what it was made of, so that a result that was kept
    and a fresh one are equal.
    """

    size: tuple[int, int]
    corner: tuple[int, int]
    values: NDArray[np.float16]

    @classmethod
    def of(cls, probability: NDArray[Any]) -> Patch:
        """The patch of a map of probabilities, or of a mask."""
        size = (probability.shape[0], probability.shape[1])
        rows = np.flatnonzero((probability >= NEGLIGIBLE).any(axis=1))
        if not len(rows):
            return cls.empty(size)
        columns = np.flatnonzero((probability >= NEGLIGIBLE).any(axis=0))
        box = probability[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        values = np.where(box >= NEGLIGIBLE, box, 0).astype(np.float16)
        return cls(size, (int(rows[0]), int(columns[0])), values)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Patch:
        """Nothing anywhere."""
        return cls(size, (0, 0), np.zeros((0, 0), np.float16))

    @property
    def box(self) -> tuple[slice, slice]:
        """Where the values lie."""
        (top, left), (rows, columns) = self.corner, self.values.shape
        return slice(top, top + rows), slice(left, left + columns)

    @property
    def any(self) -> bool:
        """Whether the mask holds a pixel."""
        return bool((self.values >= THRESHOLD).any())

    def probability(self) -> NDArray[np.float32]:
        """The whole map."""
        whole = np.zeros(self.size, np.float32)
        whole[self.box] = self.values
        return whole

    def mask(self) -> NDArray[np.bool_]:
        """Where the probability is at least one half."""
        whole = np.zeros(self.size, bool)
        whole[self.box] = self.values >= THRESHOLD
        return whole
