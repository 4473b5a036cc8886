# SPDX-License-Identifier: Apache-2.0
"""Masks, scribbles and index maps of a volume in little memory: only the slices where they are not zero.

A grid of 512 x 512 x 400 voxels has 100 MB, and a click changes one slice of it. So what is drawn and what is answered
travels slice by slice, and becomes a grid only where a file needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.orientation import SliceOrientation

Scalar = TypeVar("Scalar", bound=np.generic)
Other = TypeVar("Other", bound=np.generic)


@dataclass(frozen=True, eq=False)
class SliceMap(Generic[Scalar]):
    """Values on the grid of a volume, zero on all slices but those in `slices`: slice number -> (row, column).

    `orientation` says how the volume is cut. The arrays are never changed.
    """

    orientation: SliceOrientation
    dtype: np.dtype[Scalar]
    slices: Mapping[int, NDArray[Scalar]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, volume: NDArray[Scalar], orientation: SliceOrientation) -> SliceMap[Scalar]:
        """From an array (i, j, k), whose slices that are not empty are copied; ValueError for another shape."""
        view = orientation.to_slices(volume)
        filled = filled_indices(volume)[orientation.axes[0]]
        numbers = np.flatnonzero(filled[::-1] if orientation.flips[0] else filled)
        return cls(orientation, volume.dtype, {int(number): view[number].copy() for number in numbers})

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.orientation.stack_shape[1:]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(values.nbytes for values in self.slices.values())

    @property
    def filled(self) -> list[int]:
        """The numbers of the slices that are not empty, ascending."""
        return sorted(number for number, values in self.slices.items() if values.any())

    def on(self, number: int) -> NDArray[Scalar]:
        """The values (row, column) on a slice."""
        known = self.slices.get(number)
        return np.zeros(self.size, self.dtype) if known is None else known

    def at(self, voxel: tuple[int, int, int]) -> Scalar:
        """The value of a voxel (i, j, k)."""
        number, row, column = self.orientation.locate(voxel)
        known = self.slices.get(number)
        value: Scalar = self.dtype.type(0) if known is None else known[row, column]
        return value

    def mapped(self, change: Callable[[NDArray[Scalar]], NDArray[Other]], dtype: type[Other]) -> SliceMap[Other]:
        """The map with `change` applied to each slice that is kept; it must leave zero as it is."""
        slices = {number: change(values) for number, values in self.slices.items()}
        return SliceMap(self.orientation, np.dtype(dtype), slices)

    def with_slices(self, slices: Mapping[int, NDArray[Scalar]]) -> SliceMap[Scalar]:
        """The map with some slices replaced."""
        return replace(self, slices={**self.slices, **slices})

    def volume(self) -> NDArray[Scalar]:
        """A new array (i, j, k), the first axis the fastest in memory."""
        volume = np.zeros(self.orientation.shape, self.dtype, order="F")
        view = self.orientation.to_slices(volume)
        for number, values in self.slices.items():
            view[number] = values
        return volume

    def turned(self, orientation: SliceOrientation) -> SliceMap[Scalar]:
        """The same values cut another way; ValueError for the orientation of another grid."""
        if orientation.shape != self.orientation.shape:
            raise ValueError(f"the orientation is of shape {orientation.shape}, the map of {self.orientation.shape}")
        if orientation.axes[0] != self.orientation.axes[0]:
            return SliceMap.of(self.volume(), orientation)
        if (orientation.axes, orientation.flips) == (self.orientation.axes, self.orientation.flips):
            return replace(self, orientation=orientation)
        mirrored = orientation.flips[0] != self.orientation.flips[0]
        last = orientation.stack_shape[0] - 1
        slices = {
            last - number if mirrored else number: _recut(values, self.orientation, orientation)
            for number, values in self.slices.items()
        }
        return SliceMap(orientation, self.dtype, slices)


def filled_indices(volume: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """For each index along i, j and k, whether an array (i, j, k) holds anything there.

    Read in the order in which files store voxels, k the slowest: across it, a large array takes seconds.
    """
    filled = [np.zeros(side, bool) for side in volume.shape]
    for k in range(volume.shape[2]):
        plane = volume[:, :, k]
        if plane.any():
            filled[0] |= plane.any(axis=1)
            filled[1] |= plane.any(axis=0)
            filled[2][k] = True
    return filled[0], filled[1], filled[2]


def _recut(values: NDArray[Scalar], before: SliceOrientation, after: SliceOrientation) -> NDArray[Scalar]:
    """A slice (row, column) of one orientation as a slice of another one across the same axis."""
    stored = values[_steps(before)]
    return (stored if before.axes == after.axes else stored.T)[_steps(after)]


def _steps(orientation: SliceOrientation) -> tuple[slice, slice]:
    row, column = (slice(None, None, -1 if flip else 1) for flip in orientation.flips[1:])
    return row, column
