# SPDX-License-Identifier: Apache-2.0
"""From stored values to intensities in [0, 1]: one range for a whole image or volume, applied to any part of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


class Stack(Protocol):
    """Values that are read some slices at a time; an array is one too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all slices together."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""

    def __len__(self) -> int:
        """Number of slices."""

    def __getitem__(self, part: slice, /) -> NDArray[Any]:
        """Some slices, one after the other."""


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
        return cls.of_stack(np.asarray(image), modality=modality, units=units, window=window)

    @classmethod
    def of_stack(
        cls,
        image: Stack,
        *,
        modality: str | None = None,
        units: str | None = None,
        window: tuple[float, float] | None = None,
    ) -> IntensityRange:
        """As `of`, with the same results, for values that are read some slices at a time."""
        if image.dtype.kind not in "buif":
            raise ValueError(f"an image must hold real numbers, got dtype {image.dtype}")
        if len(image.shape) < 2 or math.prod(image.shape) == 0:
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


def looks_like_hounsfield(image: Stack) -> bool:
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


def _is_hounsfield(image: Stack, modality: str | None, units: str | None) -> bool:
    if units is not None:
        return units.strip().casefold() in ("hu", "hounsfield")
    if modality is not None:
        return modality.strip().casefold() == "ct" and image.dtype.itemsize > 1
    return looks_like_hounsfield(image)


def _is_colour_8bit(image: Stack) -> bool:
    if image.dtype != np.uint8 or len(image.shape) not in (3, 4) or image.shape[-1] not in (3, 4):
        return False
    for part in _parts(image):
        red, green, blue = part[..., 0], part[..., 1], part[..., 2]
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            return True
    return False


def _parts(image: Stack) -> Iterator[NDArray[Any]]:
    """The values from the first slice to the last, so many at once that a copy of them is small."""
    slab = max(1, _VALUES_AT_ONCE // math.prod(image.shape[1:]))
    return (image[start : start + slab] for start in range(0, len(image), slab))


def _sample(image: Stack) -> NDArray[Any]:
    """About `SAMPLES` values, evenly spaced in the order of the axes; a large image is not copied for it."""
    step = max(1, math.prod(image.shape) // SAMPLES)
    if isinstance(image, np.ndarray) and (step == 1 or image.flags.c_contiguous):
        every: NDArray[Any] = image.reshape(-1)[::step]
        return every
    sampled, before = [], 0
    for part in _parts(image):
        sampled.append(part.reshape(-1)[-before % step :: step].copy())
        before += part.size
    return np.concatenate(sampled)


def _finite_range(image: Stack) -> tuple[float, float]:
    bottom, top = math.inf, -math.inf
    for part in [image] if isinstance(image, np.ndarray) and image.dtype.kind != "f" else _parts(image):
        if part.dtype.kind != "f":
            bottom, top = min(bottom, float(part.min())), max(top, float(part.max()))
            continue
        finite = np.isfinite(part)
        bottom = min(bottom, float(part.min(where=finite, initial=np.inf)))
        top = max(top, float(part.max(where=finite, initial=-np.inf)))
    if bottom > top:
        raise ValueError(f"the image of shape {image.shape} holds no finite value")
    return bottom, top


def _robust_range(image: Stack, bottom: float, top: float) -> tuple[float, float]:
    if bottom == top:
        return bottom, top
    values = _sample(image).astype(np.float64)
    np.nan_to_num(values, copy=False, nan=bottom, posinf=top, neginf=bottom)
    raised = values[values > bottom]
    high = float(np.percentile(raised, PERCENTILES[1], overwrite_input=True)) if len(raised) else top
    low = float(np.percentile(values, PERCENTILES[0], overwrite_input=True))
    return (low, high) if low < high else (bottom, high)
