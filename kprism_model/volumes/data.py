# SPDX-License-Identifier: Apache-2.0
"""A stored volume as slices that the network can look at: oriented, scaled when a slice is asked for, and identified.

Voxels stay as they are stored. A slice of a large volume is needed long before the last one, and most never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kprism_model.intensity import SAMPLES, IntensityRange, Slices, rescaled
from kprism_model.orientation import SliceOrientation
from kprism_model.preprocess import evenly_spaced
from kprism_model.volumes.prompts import digest, digest_of

RANGE_SLICES = 16
"""The range of intensities of a volume is that of so many slices, evenly spaced."""

Box = tuple[slice, slice]
"""Rows and columns of a slice."""


@dataclass(frozen=True, eq=False)
class ScaledPixels:
    """A part of a slice (row, column[, 3]) whose rows are scaled when they are asked for."""

    stored: NDArray[Any] = field(repr=False)
    rescale: tuple[float, float]
    intensities: IntensityRange

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns, and 3 for colour."""
        return self.stored.shape

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        return self.intensities.scale(self.stored[rows], self.rescale)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class StoredSlices:
    """Slices of stored values, scaled when they are asked for.

    stored: (slice, row, column[, 3]). rescale: slope and intercept that make values of them. wait: called with the
    numbers of slices that are about to be read; it returns when they are there, or raises.
    """

    stored: NDArray[Any] = field(repr=False)
    rescale: tuple[float, float] = (1.0, 0.0)
    wait: Callable[[Sequence[int]], object] | None = None
    known_range: IntensityRange | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all slices together."""
        return self.stored.shape

    def __len__(self) -> int:
        return len(self.stored)

    @cached_property
    def intensities(self) -> IntensityRange:
        """The range of intensities: that of `RANGE_SLICES` slices; of all if these are constant."""
        return self.known_range or intensity_range(self)

    def values(self, numbers: Sequence[int]) -> NDArray[Any]:
        """The values of some slices, not scaled."""
        if self.wait is not None:
            self.wait(numbers)
        return rescaled(self.stored[list(numbers)], self.rescale)

    def window(self, number: int, box: Box) -> ScaledPixels:
        """A part of a slice; nothing is scaled yet."""
        if self.wait is not None:
            self.wait([number])
        return ScaledPixels(self.stored[number][box], self.rescale, self.intensities)

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        return self.window(range(len(self))[number], (slice(None), slice(None)))[:]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.stack(list(self)).astype(dtype or np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class JoinedSlices:
    """The slices of several volumes, one after the other; each volume has a range of intensities of its own."""

    parts: tuple[StoredSlices, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all slices together."""
        return (len(self), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def window(self, number: int, box: Box) -> ScaledPixels:
        """A part of a slice; nothing is scaled yet."""
        part, row = divmod(range(len(self))[number], len(self.parts[0]))
        return self.parts[part].window(row, box)

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        return self.window(number, (slice(None), slice(None)))[:]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate([np.asarray(part, dtype) for part in self.parts])


def window_of(images: Slices, number: int, box: Box) -> NDArray[np.float32] | ScaledPixels:
    """Rows and columns of a slice; stored ones are scaled when they are read."""
    return images.window(number, box) if isinstance(images, StoredSlices | JoinedSlices) else images[number][box]


def intensity_range(
    slices: StoredSlices,
    *,
    modality: str | None = None,
    units: str | None = None,
    window: tuple[float, float] | None = None,
) -> IntensityRange:
    """The range of `RANGE_SLICES` evenly spaced slices by the rules of `IntensityRange.of`.

    So a volume has its range before most of its slices are there. If those slices hold one value only, or none that is
    finite, all slices are looked at.
    """
    rules: dict[str, Any] = {"modality": modality, "units": units, "window": window}
    numbers = range_slices(len(slices))
    values = slices.values(numbers)
    try:
        found = IntensityRange.of(values, **rules)
    except ValueError:
        if len(numbers) == len(slices):
            raise
    else:
        if found.bottom < found.top or len(numbers) == len(slices):
            return found
    return _range_of_all(slices, rules)


def _range_of_all(slices: StoredSlices, rules: Mapping[str, Any]) -> IntensityRange:
    """The range of all slices, read one by one; percentiles are those of evenly spaced pixels of a large volume."""
    step = max(1, round(math.sqrt(math.prod(slices.shape) / SAMPLES)))
    bottom, top, samples = np.inf, -np.inf, []
    for number in range(len(slices)):
        [values] = slices.values([number])
        finite = values[np.isfinite(values)]
        if finite.size:
            bottom, top = min(bottom, float(finite.min())), max(top, float(finite.max()))
        samples.append(values[::step, ::step])
    found = IntensityRange.of(np.stack(samples), **rules)
    low, high = (bottom, top) if found.low == found.high else (found.low, found.high)
    return IntensityRange(low, high, bottom, top)


def range_slices(count: int) -> list[int]:
    """The numbers of the slices, of `count`, that the range of intensities is taken from."""
    return evenly_spaced(range(count), RANGE_SLICES)


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume as slices; cheap to share between requests, and never changed.

    images: (slice, row, column) or (slice, row, column, 3) in [0, 1], scaled when they are read; `digest` identifies
    them.
    """

    images: Slices = field(repr=False)
    orientation: SliceOrientation
    digest: str

    @classmethod
    def of(
        cls,
        array: NDArray[Any],
        affine: ArrayLike,
        *,
        plane: str | None = None,
        slice_axis: int | None = None,
        modality: str | None = None,
        units: str | None = None,
        window: tuple[float, float] | None = None,
    ) -> Volume:
        """Cut a stored array into slices, which are scaled by one range for the whole volume, see `intensity_range`.

        `array` is (i, j, k), as nibabel gives it, with the voxel-to-RAS `affine` in mm; in colour (i, j, k, 3), where a
        fourth channel is left out, or NIfTI's type RGB24. It must not be changed later. `plane` and `slice_axis` as in
        `SliceOrientation.of`; `modality`, `units` and `window` as in `IntensityRange.of`, the first two for grey
        volumes only. ValueError for other shapes, unusable affines and what `IntensityRange.of` refuses.
        """
        array = _colour_as_axis(np.asarray(array))
        if array.ndim == 4 and array.shape[3] not in (3, 4):
            raise ValueError(
                f"a volume of shape {array.shape} has a fourth axis of {array.shape[3]}: a time series or several "
                "channels; expected one volume (i, j, k), or colour (i, j, k, 3)"
            )
        if array.ndim not in (3, 4):
            raise ValueError(f"a volume must have three axes, got shape {array.shape}")
        orientation = SliceOrientation.of(affine, array.shape[:3], plane, slice_axis)
        stored = StoredSlices(orientation.to_slices(array if array.ndim == 3 else array[..., :3]))
        grey_only = {"modality": modality, "units": units} if array.ndim == 3 else {}
        intensities = intensity_range(stored, **grey_only, window=window)
        images = StoredSlices(stored.stored, known_range=intensities)
        return cls(images, orientation, digest(digest_of(stored.stored), repr(intensities)))

    @classmethod
    def of_slices(cls, images: Slices, orientation: SliceOrientation, digest: str) -> Volume:
        """From slices that are cut already; `digest` must tell them from any others."""
        if images.shape[:3] != orientation.stack_shape or len(images.shape) not in (3, 4):
            raise ValueError(f"slices have shape {images.shape}; the orientation expects {orientation.stack_shape}")
        return cls(images, orientation, digest)

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.images.shape[1], self.images.shape[2]

    def locate(self, voxel: ArrayLike) -> tuple[int, int, int]:
        """(slice, row, column) of a voxel (i, j, k)."""
        return self.orientation.locate(voxel)


def _colour_as_axis(array: NDArray[Any]) -> NDArray[Any]:
    """Voxels of named channels (NIfTI's RGB24) with the channels as a last axis."""
    names = array.dtype.names
    if names is None:
        return array
    if not {"R", "G", "B"} <= set(names):
        raise ValueError(f"voxels have the fields {', '.join(names)}; expected numbers, or R, G and B")
    return np.stack([array[name] for name in "RGB"], axis=-1)
