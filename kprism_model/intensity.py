# SPDX-License-Identifier: Apache-2.0
"""From stored values to intensities in [0, 1]: one range for a whole image or volume, applied to any part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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

SAMPLES = 1 << 22
"""Percentiles of a large volume are taken from about this many evenly spaced voxels."""

_VALUES_AT_ONCE = 1 << 20  # in float64, so that a large volume needs little more memory
_NO_RESCALE = (1.0, 0.0)


@dataclass(frozen=True)
class IntensityRange:
    """`low` becomes 0 and `high` becomes 1, what is between linearly; values beyond are clipped.

    NaN and negative infinity become `bottom`, positive infinity `top`: the least and the greatest finite value.
    """

    low: float
    high: float
    bottom: float
    top: float

    @classmethod
    def of(
        cls,
        image: NDArray[Any],
        *,
        modality: str | None = None,
        units: str | None = None,
        window: tuple[float, float] | None = None,
    ) -> IntensityRange:
        """The range of an image or volume with two or more axes. The first of these rules that applies is used:

        1. `window` (lower, upper), in the image's own units;
        2. Hounsfield units: `units` is "HU"; or `modality` is "CT" and the values are not 8-bit; or neither is given
           and `looks_like_hounsfield` holds: the window `CT_WINDOWS["wide"]`;
        3. 8-bit colour (three or four axes, the last of 3 or 4 channels that are not all equal): 0 to 255;
        4. anything else: from the 0.5th percentile of all values to the 99.5th of the values above the minimum (a large
           constant background must not set the upper bound).

        ValueError for other than real numbers, fewer than two axes, no finite value, or a window that is not finite
        and increasing.
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
        return cls(low, high, bottom, top)

    def scale(self, image: NDArray[Any], rescale: tuple[float, float] = _NO_RESCALE) -> NDArray[np.float32]:
        """Values of any shape as intensities; a range without extent gives zeros.

        `rescale` is the slope and the intercept that make values of stored ones, see `rescaled`.
        """
        scaled = np.empty(image.shape, np.float32)
        is_short = image.dtype.kind in "ui" and image.dtype.itemsize <= 2 and image.dtype.isnative
        table = _table(self, image.dtype, rescale) if is_short else None
        slab = max(1, _VALUES_AT_ONCE // max(1, image[0].size))
        for start in range(0, len(image), slab):
            part = slice(start, start + slab)
            if table is None:
                scaled[part] = self._scaled(rescaled(image[part], rescale))
            else:
                scaled[part] = table[image[part].view(f"u{image.dtype.itemsize}")]
        return scaled

    def _scaled(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """(values - low) / (high - low), clipped; computed in float64."""
        half_span = self.high / 2 - self.low / 2  # halves, because the difference of two large floats can overflow
        if half_span <= 0:
            return np.zeros(values.shape, np.float32)
        values = np.nan_to_num(values.astype(np.float64), nan=self.bottom, posinf=self.top, neginf=self.bottom)
        scaled: NDArray[np.float64] = (np.clip(values, self.low, self.high) / 2 - self.low / 2) / half_span
        return scaled.astype(np.float32)


class Slices(Protocol):
    """Slices (slice, row, column[, 3]) with intensities in [0, 1]; an array is one too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all slices together."""

    def __len__(self) -> int:
        """Number of slices."""

    def __getitem__(self, number: int, /) -> NDArray[np.float32]:
        """A slice (row, column[, 3])."""


def scale_intensity(
    image: NDArray[Any],
    *,
    modality: str | None = None,
    units: str | None = None,
    window: tuple[float, float] | None = None,
) -> NDArray[np.float32]:
    """Scale an image or a whole volume, with two or more axes, to float32 in [0, 1]; the shape is kept.

    The range and the errors are those of `IntensityRange.of`. A constant image gives zeros.
    """
    image = np.asarray(image)
    return IntensityRange.of(image, modality=modality, units=units, window=window).scale(image)


def rescaled(stored: NDArray[Any], rescale: tuple[float, float]) -> NDArray[Any]:
    """Values of stored ones by `rescale` (slope, intercept), in float32; unchanged for slope 1 and intercept 0."""
    if rescale == _NO_RESCALE:
        return stored
    slope, intercept = rescale
    values: NDArray[np.float32] = (stored * float(slope) + float(intercept)).astype(np.float32)
    return values


@lru_cache(maxsize=16)
def _table(intensities: IntensityRange, dtype: np.dtype[Any], rescale: tuple[float, float]) -> NDArray[np.float32]:
    """The intensity of every value of an integer type of 8 or 16 bits, by its bits as an unsigned number."""
    bits = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}")
    return intensities._scaled(rescaled(bits.view(dtype.newbyteorder("=")), rescale))


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
    near_water = (values >= -200) & (values <= 300)
    if near_water.mean() < 0.1:
        return False
    return image.dtype.kind == "i" or bool((np.abs(values - values.round()) < 0.05).mean() >= 0.9)


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
    return flat[:: max(1, flat.size // SAMPLES)]


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
