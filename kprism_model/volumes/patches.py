# SPDX-License-Identifier: Apache-2.0
"""Probability maps of one structure in little memory: only the box where it may be, in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.components import bounding_box
from kprism_model.predictor import THRESHOLD
from kprism_model.window import Box, Window

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
    def of_part(cls, size: tuple[int, int], corner: tuple[int, int], probability: NDArray[Any]) -> Patch:
        """The patch of a map of `size` that is zero outside of a part, `probability` (row, column) from `corner` on."""
        own = cls.of(probability)
        top, left = own.corner
        return cls(size, (corner[0] + top, corner[1] + left), own.values) if own.values.size else cls.empty(size)

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

    @cached_property
    def is_mask(self) -> bool:
        """Whether all values are 0 or 1."""
        return bool(((self.values == 0) | (self.values == 1)).all())

    @cached_property
    def mask_box(self) -> Box | None:
        """The smallest box that holds the mask; None if that is empty."""
        own = Box.around(self.values >= THRESHOLD)
        return None if own is None else own.moved(*self.corner)

    def crop(self, window: Window) -> NDArray[Any]:
        """The map in a window; bool if it is a mask."""
        part = self._within(window.top, window.left, window.rows, window.columns)
        return part >= THRESHOLD if self.is_mask else part

    def _within(self, top: int, left: int, rows: int, columns: int) -> NDArray[np.float32]:
        part = np.zeros((rows, columns), np.float32)
        (own_top, own_left), (own_rows, own_columns) = self.corner, self.values.shape
        first, last = max(top, own_top), min(top + rows, own_top + own_rows)
        start, end = max(left, own_left), min(left + columns, own_left + own_columns)
        if first < last and start < end:
            own = self.values[first - own_top : last - own_top, start - own_left : end - own_left]
            part[first - top : last - top, start - left : end - left] = own
        return part

    def replaced(self, window: Window, probability: NDArray[np.float32]) -> Patch:
        """The map with other values (row, column) in a window."""
        corner, part = self._with_room_for(
            window.top, window.left, window.top + window.rows, window.left + window.columns
        )
        first, start = window.top - corner[0], window.left - corner[1]
        part[first : first + window.rows, start : start + window.columns] = probability
        return Patch.of_part(self.size, corner, part)

    def with_pixels(self, pixels: Mapping[tuple[int, int], float]) -> Patch:
        """The map with other values at some places (row, column), of which there is at least one."""
        rows, columns = zip(*pixels, strict=True)
        corner, part = self._with_room_for(min(rows), min(columns), max(rows) + 1, max(columns) + 1)
        for (row, column), value in pixels.items():
            part[row - corner[0], column - corner[1]] = value
        return Patch.of_part(self.size, corner, part)

    def _with_room_for(
        self, top: int, left: int, bottom: int, right: int
    ) -> tuple[tuple[int, int], NDArray[np.float32]]:
        """A new array of the values and of some rows and columns, and its corner."""
        if self.values.size:
            (own_top, own_left), (own_rows, own_columns) = self.corner, self.values.shape
            top, left = min(top, own_top), min(left, own_left)
            bottom, right = max(bottom, own_top + own_rows), max(right, own_left + own_columns)
        return (top, left), self._within(top, left, bottom - top, right - left)

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
