# SPDX-License-Identifier: Apache-2.0
"""From stored pixels to network input and back: intensity scaling, resizing, and coordinates in both directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from kprism_model.network.config import SIZE_MULTIPLE

CT_WINDOWS: dict[str, tuple[float, float]] = {
    "wide": (-500.0, 500.0),
    "brain": (0.0, 80.0),
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
}
"""Lower and upper bound in Hounsfield units of the usual reading windows; "wide" is the default.

"wide" spans from the lung's edge to trabecular bone, so one window fits every organ, and a step of 8 bits is 4 HU.
"""

PERCENTILES = (0.5, 99.5)
"""Intensities without a known unit are scaled between these percentiles (as nnU-Net does for CT, arXiv 1809.10486)."""

_SAMPLES = 1 << 22  # percentiles of a large volume are taken from about this many evenly spaced voxels
_VALUES_AT_ONCE = 1 << 20  # in float64, so that a large volume needs little more memory


def scale_intensity(
    image: NDArray[Any],
    *,
    modality: str | None = None,
    units: str | None = None,
    window: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Scale an image or a whole volume, with two or more axes, to float32 in [0, 1]; the shape is kept.

    The first of these rules that applies is used:

    1. `window` (lower, upper), in the image's own units;
    2. Hounsfield units: `units` is "HU"; or `modality` is "CT" and the values are not 8-bit; or neither is given and
       `looks_like_hounsfield` holds: the window `CT_WINDOWS["wide"]`;
    3. 8-bit colour (three or four axes, the last of 3 or 4 channels that are not all equal): divided by 255;
    4. anything else: from the 0.5th percentile of all values to the 99.5th of the values above the minimum (a large
       constant background must not set the upper bound).

    NaN and negative infinity become the finite minimum, positive infinity the finite maximum. A constant image gives
    zeros. ValueError for other than real numbers, fewer than two axes, no finite value, or a window that is not
    finite and increasing.
    """
    image = np.asarray(image)
    if image.dtype.kind not in "buif":
        raise ValueError(f"an image must hold real numbers, got dtype {image.dtype}")
    if image.ndim < 2 or image.size == 0:
        raise ValueError(f"an image needs at least two axes and one pixel, got shape {image.shape}")
    bottom, top = _finite_range(image)
    if window is not None:
        low, high = float(window[0]), float(window[1])
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a window needs a finite lower bound below a finite upper bound, got {window}")
    elif _is_hounsfield(image, modality, units):
        low, high = CT_WINDOWS["wide"]
    elif _is_colour_8bit(image):
        low, high = 0.0, 255.0
    else:
        low, high = _robust_range(image, bottom, top)
    return _rescale(image, low, high, bottom, top)


def looks_like_hounsfield(image: NDArray[Any]) -> bool:
    """Whether the values can only be CT numbers: integers, some near air, and at least a tenth near water.

    The last condition excludes signed MR phase images, which are spread evenly over their range.
    """
    if image.dtype.kind not in "if" or image.dtype.itemsize < 2:
        return False
    values = _sample(image).astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values) or values.min() > -500 or np.abs(values).max() > 1e5:
        return False
    integers = np.abs(values - values.round()) < 0.05
    near_water = (values >= -200) & (values <= 300)
    return bool(integers.mean() >= 0.9 and near_water.mean() >= 0.1)


def to_three_channels(image: NDArray[Any]) -> NDArray[Any]:
    """A (rows, columns, 3) view or copy of a grey (rows, columns[, 1]), RGB or RGBA image; alpha is dropped.

    ValueError for any other shape.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"an image must be (rows, columns) or (rows, columns, 1, 3 or 4), got shape {image.shape}")
    return np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[..., :3]


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

    def image_to_model(self, image: NDArray[Any]) -> Tensor:
        """An image scaled to [0, 1], grey or colour -> float32 (3, padded rows, padded columns)."""
        self._check_size(image, "image")
        low, high = float(image.min()), float(image.max())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"image values must be scaled to [0, 1] (scale_intensity), got {low:g} to {high:g}")
        grey = image.ndim == 2
        channels = image[..., None] if grey else to_three_channels(image)
        canvas = self._to_canvas(torch.from_numpy(np.array(channels, dtype=np.float32)).permute(2, 0, 1))
        return canvas.repeat(3, 1, 1) if grey else canvas

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

    def _check_size(self, array: NDArray[Any], what: str) -> None:
        if array.shape[:2] != self.size:
            raise ValueError(f"{what} has shape {array.shape}, expected {self.size[0]} rows and {self.size[1]} columns")


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


def _is_hounsfield(image: NDArray[Any], modality: str | None, units: str | None) -> bool:
    if units is not None:
        return units.strip().casefold() in ("hu", "hounsfield")
    if modality is not None:
        return modality.strip().casefold() == "ct" and image.dtype.itemsize > 1
    return looks_like_hounsfield(image)


def _is_colour_8bit(image: NDArray[Any]) -> bool:
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] not in (3, 4):
        return False
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return not (np.array_equal(red, green) and np.array_equal(red, blue))


def _sample(image: NDArray[Any]) -> NDArray[Any]:
    flat = image.reshape(-1)
    return flat[:: max(1, flat.size // _SAMPLES)]


def _finite_range(image: NDArray[Any]) -> tuple[float, float]:
    if image.dtype.kind != "f":
        return float(image.min()), float(image.max())
    finite = np.isfinite(image)
    if not finite.any():
        raise ValueError(f"the image of shape {image.shape} holds no finite value")
    return float(image.min(where=finite, initial=np.inf)), float(image.max(where=finite, initial=-np.inf))


def _robust_range(image: NDArray[Any], bottom: float, top: float) -> tuple[float, float]:
    if bottom == top:
        return bottom, top
    values = _sample(image).astype(np.float64)
    values = np.nan_to_num(values, nan=bottom, posinf=top, neginf=bottom)
    raised = values[values > bottom]
    high = float(np.percentile(raised, PERCENTILES[1])) if len(raised) else top
    low = float(np.percentile(values, PERCENTILES[0]))
    return (low, high) if low < high else (bottom, high)


def _rescale(image: NDArray[Any], low: float, high: float, bottom: float, top: float) -> NDArray[np.float32]:
    """(image - low) / (high - low), clipped; in float64, a slab at a time to bound memory."""
    scaled = np.zeros(image.shape, np.float32)
    half_span = high / 2 - low / 2  # halves, because the difference of two large floats can overflow
    if half_span <= 0:
        return scaled
    slab = max(1, _VALUES_AT_ONCE // max(1, image[0].size))
    for start in range(0, len(image), slab):
        part = slice(start, start + slab)
        values = np.nan_to_num(image[part].astype(np.float64), nan=bottom, posinf=top, neginf=bottom)
        scaled[part] = (np.clip(values, low, high) / 2 - low / 2) / half_span
    return scaled


def evenly_spaced(numbers: Sequence[int] | NDArray[np.int64], count: int) -> list[int]:
    """At most `count` of `numbers`, in order: the middle ones of as many equal parts."""
    count = min(count, len(numbers))
    return [int(numbers[int((place + 0.5) * len(numbers) / count)]) for place in range(count)]
