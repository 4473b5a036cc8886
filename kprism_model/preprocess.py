# SPDX-License-Identifier: Apache-2.0
"""From intensities in [0, 1] to network input and back: resizing, and coordinates in both directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from kprism_model.network.config import SIZE_MULTIPLE

_PIXELS_AT_ONCE = 1 << 21  # of an image that becomes network input


def to_three_channels(image: NDArray[Any]) -> NDArray[Any]:
    """A (rows, columns, 3) view or copy of a grey (rows, columns[, 1]), RGB or RGBA image; alpha is dropped.

    ValueError for any other shape.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"an image must be (rows, columns) or (rows, columns, 1, 3 or 4), got shape {image.shape}")
    return np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[..., :3]


class Pixels(Protocol):
    """An image in [0, 1] that is read some rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns, and 3 for colour."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        """Some rows (row, column[, 3])."""


@dataclass(frozen=True)
class Geometry:
    """How an image is placed on the network's canvas: resized, then padded with zeros below and right.

    All sizes are (rows, columns) in pixels. Pixel centres have integer coordinates, so pixel edges are at -0.5 and
    size - 0.5, and a position x of the image is (x + 0.5) * scale - 0.5 on the canvas, for rows and
    columns separately (rounding the short side makes their scales differ a little).
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def fit(cls, size: tuple[int, int], native: int, multiple: int = SIZE_MULTIPLE) -> Geometry:
        """Resize the long side of an image of `size` to `native`, the short side in proportion; pad to `multiple`."""
        height, width = (int(side) for side in size)
        if min(height, width, native, multiple) < 1:
            raise ValueError(f"sizes must be positive, got size {size}, native {native}, multiple {multiple}")
        longest = max(height, width)
        rows, columns = (max(1, math.floor(side * native / longest + 0.5)) for side in (height, width))
        padded = (math.ceil(rows / multiple) * multiple, math.ceil(columns / multiple) * multiple)
        return cls((height, width), (rows, columns), padded)

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels for each image pixel, along rows and columns."""
        return self.resized[0] / self.size[0], self.resized[1] / self.size[1]

    def points_to_model(self, points: ArrayLike) -> NDArray[np.float64]:
        """Image positions (..., 2) as (row, column) -> canvas positions, in float64."""
        canvas: NDArray[np.float64] = (np.asarray(points, dtype=np.float64) + 0.5) * np.array(self.scale) - 0.5
        return canvas

    def points_to_image(self, points: ArrayLike) -> NDArray[np.float64]:
        """Canvas positions (..., 2) as (row, column) -> image positions; the inverse of `points_to_model`."""
        image: NDArray[np.float64] = (np.asarray(points, dtype=np.float64) + 0.5) / np.array(self.scale) - 0.5
        return image

    def image_to_model(self, image: NDArray[Any] | Pixels) -> Tensor:
        """An image scaled to [0, 1], grey or colour -> float32 (3, padded rows, padded columns).

        A large image is read and narrowed some rows at a time, which gives the same values.
        """
        self._check_size(image, "image")
        rows = max(1, _PIXELS_AT_ONCE // image.shape[1])
        if image.shape[0] <= rows:
            channels = _channels(np.asarray(image[:]))
        else:
            parts = (_channels(np.asarray(image[top : top + rows])) for top in range(0, image.shape[0], rows))
            narrow = [resize(part[None], (part.shape[1], self.resized[1]))[0] for part in parts]
            channels = torch.cat(narrow, dim=1)
        canvas = self._to_canvas(channels)
        return canvas.repeat(3, 1, 1) if len(canvas) == 1 else canvas

    def mask_to_model(self, mask: NDArray[Any]) -> Tensor:
        """A mask or probability map (rows, columns) -> float32 (1, padded rows, padded columns), fractions at edges."""
        self._check_size(mask, "mask")
        if mask.ndim != 2:
            raise ValueError(f"a mask must be (rows, columns), got shape {mask.shape}")
        return self._to_canvas(torch.from_numpy(np.array(mask, dtype=np.float32))[None])

    def logits_to_image(self, logits: Tensor) -> Tensor:
        """Maps (..., h, w) over the padded canvas, at any stride -> (..., rows, columns) of the image, bilinear."""
        flat = logits.reshape(-1, 1, *logits.shape[-2:])
        on_canvas = resize(flat, self.padded)[..., : self.resized[0], : self.resized[1]]
        return resize(on_canvas, self.size).reshape(*logits.shape[:-2], *self.size)

    def _to_canvas(self, channels: Tensor) -> Tensor:
        resized = resize(channels[None], self.resized)[0]
        below, right = self.padded[0] - self.resized[0], self.padded[1] - self.resized[1]
        return F.pad(resized, (0, right, 0, below))

    def _check_size(self, array: NDArray[Any] | Pixels, what: str) -> None:
        if array.shape[:2] != self.size:
            raise ValueError(f"{what} has shape {array.shape}, expected {self.size[0]} rows and {self.size[1]} columns")


def _channels(image: NDArray[Any]) -> Tensor:
    """An image in [0, 1] as float32 (1 or 3, rows, columns); ValueError for other values."""
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"image values must be scaled to [0, 1] (scale_intensity), got {low:g} to {high:g}")
    channels = image[..., None] if image.ndim == 2 else to_three_channels(image)
    return torch.from_numpy(np.array(channels, dtype=np.float32)).permute(2, 0, 1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) to `size` (rows, columns), with an antialiasing filter if it shrinks."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if (
        size[1] == 1 and size[0] > 1
    ):  # torch 2.13 filters rows wrongly if the result has one column, but not if it has one row
        return resize(maps.mT.contiguous(), (size[1], size[0])).mT
    shrinks = size[0] < maps.shape[-2] or size[1] < maps.shape[-1]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=shrinks)


def evenly_spaced(numbers: Sequence[int] | NDArray[np.int64], count: int) -> list[int]:
    """At most `count` of `numbers`, in order: the middle ones of as many equal parts."""
    count = min(count, len(numbers))
    return [int(numbers[int((place + 0.5) * len(numbers) / count)]) for place in range(count)]
