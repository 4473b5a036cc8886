# SPDX-License-Identifier: Apache-2.0
"""Windows of an image: which part to show the network at a higher resolution, and coordinates in a window.

A small structure covers few pixels of the network's canvas. Once a mask or two clicks show where it is, the image is
cropped around it and the crop fills the canvas ("zoom-in": f-BRS, arXiv 2001.10331; "target crop": FocalClick, arXiv
2204.02574).

There are few window sizes, and corners lie on a coarse grid. So a mask that changes a little keeps its window, and the
window's embedding can be used again. All functions are pure. Sizes are (rows, columns) in pixels; points are (row,
column) with pixel centres at integer coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kprism_model.components import bounding_box
from kprism_model.predictor import THRESHOLD
from kprism_model.queries import Click

Size = tuple[int, int]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class WindowRules:
    """The numbers by which windows are chosen; magnification is the long side of the image over that of the window.

    margin: free space on each side of the structure, as a share of its longer side. minimum_magnification and
    maximum_magnification: of any window. maximum_without_mask: the largest magnification if there are clicks but no
    mask, because clicks say little about the structure's extent. maximum_enlargement: canvas pixels for each image
    pixel along a side; more would show nothing new. step: the ratio of one window size to the next. grid: corners lie
    on multiples of the side divided by this.
    """

    margin: float = 0.4
    minimum_magnification: float = 1.6
    maximum_magnification: float = 6.4
    maximum_without_mask: float = 2.0
    maximum_enlargement: float = 3.0
    step: float = 2**0.5
    grid: int = 8

    def __post_init__(self) -> None:
        """Refuse rules that no window can satisfy."""
        magnifications = 1 < self.minimum_magnification <= self.maximum_magnification and self.maximum_without_mask >= 1
        if not (self.margin >= 0 and magnifications and self.step > 1):
            raise ValueError(
                "expected margin >= 0, 1 < minimum_magnification <= maximum_magnification, maximum_without_mask >= 1 "
                f"and step > 1, got {self}"
            )
        if self.grid < 1:
            raise ValueError(f"grid must be at least 1, got {self.grid}")

    def sides(self, size: Size, native: int) -> list[int]:
        """Long sides of windows in an image of `size`, ascending, for a canvas of `native` pixels."""
        ratio = self.maximum_magnification / self.minimum_magnification
        steps = int(math.log(ratio) / math.log(self.step) + 1e-6)  # the maximum itself is included
        sides = {round(max(size) / (self.minimum_magnification * self.step**number)) for number in range(steps + 1)}
        return sorted(side for side in sides if side * self.maximum_enlargement >= native)


@dataclass(frozen=True)
class Box:
    """Rows `top` to `bottom` and columns `left` to `right`, both included."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Box | None:
        """The smallest box that holds a mask (row, column); None for an empty one."""
        box = bounding_box(mask)
        if box is None:
            return None
        rows, columns = box
        return cls(rows.start, columns.start, rows.stop - 1, columns.stop - 1)

    @property
    def longest(self) -> int:
        """The longer side in pixels."""
        return max(self.bottom - self.top, self.right - self.left) + 1

    def moved(self, rows: int, columns: int) -> Box:
        """The box so many rows and columns further."""
        return Box(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns)

    def joined(self, other: Box | None) -> Box:
        """The smallest box that holds both."""
        if other is None:
            return self
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )


@dataclass(frozen=True)
class Window:
    """`rows` x `columns` pixels of an image of `size`, from row `top` and column `left` on."""

    top: int
    left: int
    rows: int
    columns: int
    size: Size

    @classmethod
    def whole(cls, size: Size) -> Window:
        """The whole image as a window."""
        return cls(0, 0, *size, size)

    @property
    def is_whole(self) -> bool:
        """Whether the window is the whole image."""
        return (self.rows, self.columns) == self.size

    @property
    def longest(self) -> int:
        """The longer side in pixels."""
        return max(self.rows, self.columns)

    @property
    def box(self) -> tuple[slice, slice]:
        """The index of the window in an array of the image's size."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)

    def holds(self, box: Box) -> bool:
        """Whether a box lies inside the window."""
        bottom, right = self.top + self.rows - 1, self.left + self.columns - 1
        return self.top <= box.top and self.left <= box.left and box.bottom <= bottom and box.right <= right

    def crop(self, image: NDArray[Scalar]) -> NDArray[Scalar]:
        """The window's part of an array (row, column, ...), as a view; ValueError for an array of another size."""
        if image.shape[:2] != self.size:
            raise ValueError(f"expected an array of {self.size[0]} x {self.size[1]} pixels, got shape {image.shape}")
        return image[self.box]

    def paste(self, values: NDArray[Scalar], onto: NDArray[Scalar] | None = None) -> NDArray[Scalar]:
        """A new array of the image's size: `values` (row, column) in the window; elsewhere `onto`, or zero."""
        whole = np.zeros(self.size, values.dtype) if onto is None else onto.astype(values.dtype)
        whole[self.box] = values
        return whole

    def to_window(self, click: Click) -> Click:
        """A click in image pixels -> the same click in window pixels."""
        return Click(click.row - self.top, click.column - self.left, click.positive)

    def to_image(self, click: Click) -> Click:
        """A click in window pixels -> the same click in image pixels; the inverse of `to_window`."""
        return Click(click.row + self.top, click.column + self.left, click.positive)

    def cuts(self, mask: NDArray[np.bool_]) -> bool:
        """Whether a mask (row, column) of the window touches a side of it that is not a side of the image."""
        return bool(
            (self.top > 0 and mask[0].any())
            or (self.left > 0 and mask[:, 0].any())
            or (self.top + self.rows < self.size[0] and mask[-1].any())
            or (self.left + self.columns < self.size[1] and mask[:, -1].any())
        )


@runtime_checkable
class SparseMask(Protocol):
    """A mask or probabilities (row, column), of which only a part may be different from zero."""

    @property
    def mask_box(self) -> Box | None:
        """The smallest box that holds the mask; None if that is empty."""

    def crop(self, window: Window) -> NDArray[np.float32]:
        """The values in a window."""


class SpatialPrompts(Protocol):
    """The prompts of a query that have a place in the image. A window depends on these alone."""

    @property
    def clicks(self) -> tuple[Click, ...]:
        """Clicks in order."""

    @property
    def scribbles(self) -> NDArray[Any] | None:
        """Scribbles (row, column): 1 inside, -1 outside, 0 elsewhere."""

    @property
    def previous_mask(self) -> NDArray[Any] | SparseMask | None:
        """Mask or probabilities (row, column)."""


def choose_window(
    size: Size,
    native: int,
    prompts: SpatialPrompts,
    rules: WindowRules,
    *,
    predicted: Box | None = None,
    wider_than: int = 0,
) -> Window:
    """The window for a query about an image of `size`, or the whole image if no window shows more.

    `native` is the long side of the network's canvas. The window holds the previous mask, all clicks and scribbles, and
    `predicted`, the box of the mask that was predicted so far. Its long side is more than `wider_than` pixels. The
    whole image is used for a query without clicks and scribbles, and for one that has a single click and no mask,
    because nothing shows yet where the structure ends.
    """
    drawn = None if prompts.scribbles is None else Box.around(np.asarray(prompts.scribbles) != 0)
    if not prompts.clicks and drawn is None:
        return Window.whole(size)
    mask = mask_box(prompts.previous_mask)
    has_mask = mask is not None or predicted is not None
    if not has_mask and len(prompts.clicks) < 2:
        return Window.whole(size)
    parts = [mask, predicted, drawn, _around_clicks(prompts.clicks, size)]
    return window_around(size, native, parts, rules, has_mask=has_mask, wider_than=wider_than)


def mask_box(mask: NDArray[Any] | SparseMask | None) -> Box | None:
    """The box of a mask or of probabilities (row, column)."""
    if mask is None or isinstance(mask, SparseMask):
        return None if mask is None else mask.mask_box
    return Box.around(np.asarray(mask) >= THRESHOLD)


def window_around(
    size: Size,
    native: int,
    parts: Sequence[Box | None],
    rules: WindowRules,
    *,
    has_mask: bool = True,
    wider_than: int = 0,
) -> Window:
    """The smallest window that holds all `parts` with the margin; the whole image if there is none."""
    boxes = [part for part in parts if part is not None]
    if not boxes:
        return Window.whole(size)
    box = boxes[0]
    for part in boxes[1:]:
        box = box.joined(part)
    needed = box.longest * (1 + 2 * rules.margin)
    if not has_mask:
        needed = max(needed, max(size) / rules.maximum_without_mask)
    for side in rules.sides(size, native):
        if side >= needed and side > wider_than and (window := window_of_side(box, side, size, rules.grid)).holds(box):
            return window
    return Window.whole(size)


def window_of_side(box: Box, side: int, size: Size, grid: int = WindowRules.grid) -> Window:
    """A window of `side` pixels, or of the image's size if less; its corner on the grid, `box` near its centre."""
    step = max(1, side // grid)
    rows, columns = min(side, size[0]), min(side, size[1])
    top = _corner((box.top + box.bottom + 1) / 2 - rows / 2, step, size[0] - rows)
    left = _corner((box.left + box.right + 1) / 2 - columns / 2, step, size[1] - columns)
    return Window(top, left, rows, columns, size)


def _corner(position: float, step: int, last: int) -> int:
    return min(max(0, int(np.floor(position / step + 0.5)) * step), last)


def _around_clicks(clicks: Sequence[Click], size: Size) -> Box | None:
    if not clicks:
        return None
    rows = [min(max(0, int(np.floor(click.row + 0.5))), size[0] - 1) for click in clicks]
    columns = [min(max(0, int(np.floor(click.column + 0.5))), size[1] - 1) for click in clicks]
    return Box(min(rows), min(columns), max(rows), max(columns))
