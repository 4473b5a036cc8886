# SPDX-License-Identifier: Apache-2.0
"""Frames of a segmentation that are on no image of its series, taken onto the series' grid by their position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.frames import functional, number
from lib.dicom.seg_frames import Plane, SegFrames
from lib.dicom.series import Series
from lib.imaging.medical_image import LPS_TO_RAS

GRID_TOLERANCE = 0.01
"""Voxels that are less than this share of a voxel apart are the same."""

SAME_LAYER = 0.1
"""Frames that are closer together than this part of their thickness are at one place."""

DEPTHS = ("SpacingBetweenSlices", "SliceThickness")


@dataclass(frozen=True)
class Resampled:
    """A segment on a grid, whether it was on another one, and how many of its voxels are outside.

    `bits` holds the slices that are not empty: there may be a hundred segments.
    """

    bits: dict[int, NDArray[np.uint8]]
    shape: tuple[int, int]
    is_other_grid: bool
    outside: int

    def planes(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """The slices that are not empty, and the mask (column, row) of each."""
        count = self.shape[0] * self.shape[1]
        for k, bits in self.bits.items():
            yield k, np.unpackbits(bits, count=count).reshape(self.shape).view(bool)


def resampled(
    frames: SegFrames, planes: Sequence[Plane], series: Series, spacing: tuple[float, float], segmentation: Dataset
) -> Resampled:
    """The segment that frames with positions show; `spacing` is theirs, between rows and between columns."""
    first = planes[0].frame
    along, down = (unit(part) for part in (np.array(first.orientation)[:3], np.array(first.orientation)[3:]))
    normal = unit(np.cross(along, down))
    depths = np.array([plane.frame.position for plane in planes], np.float64) @ normal
    steps = _steps(segmentation, frames, normal)
    layers = _Layers.of(depths, steps or float(np.linalg.norm(series.affine[:3, 2])))
    volume = np.zeros((*frames.shape[::-1], len(layers.depths)), bool, order="F")
    for plane, layer in zip(planes, layers.nearest(depths), strict=True):
        volume[:, :, layer] |= frames.mask(plane).T
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along * spacing[1], down * spacing[0], normal], axis=1)
    affine[:3, 3] = planes[int(np.argmin(depths))].frame.position
    to_frames = np.linalg.inv(affine)
    places = [to_frames @ _plane_of(series, k) for k in range(series.grid[2])]
    is_other_grid = not all(_is_whole(change, layers) for change in places)
    bits, found = {}, 0
    for k, mask in enumerate(_sampled(volume, places, layers, series.grid[:2])):
        if mask.any():
            bits[k] = np.packbits(mask)
            found += int(np.count_nonzero(mask))
    outside = 0 if is_other_grid else max(0, int(np.count_nonzero(volume)) - found)
    return Resampled(bits, series.grid[:2], is_other_grid, outside)


def unit(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """The direction with length 1."""
    result: NDArray[np.float64] = direction / np.linalg.norm(direction)
    return result


@dataclass(frozen=True)
class _Layers:
    """The depths of frames along their normal, from the first (mm, ascending), and the thickness of each.

    Frames need not be equally far apart: empty ones are often left out, and places of the images may be missing.
    """

    depths: NDArray[np.float64]
    thickness: float

    @classmethod
    def of(cls, depths: NDArray[np.float64], thickness: float) -> _Layers:
        """From the depths of all frames, in any order."""
        ordered = np.sort(depths) - depths.min()
        starts = np.r_[True, np.diff(ordered) > SAME_LAYER * thickness]
        return cls(ordered[starts], thickness)

    def nearest(self, depths: NDArray[np.float64]) -> NDArray[np.intp]:
        """The numbers of the layers nearest to depths along the normal."""
        return self._nearest(depths - depths.min())

    def at(self, places: NDArray[np.float64]) -> NDArray[np.intp]:
        """The numbers of the layers at places (mm from the first one), -1 between them and outside."""
        nearest = self._nearest(places)
        away = places - self.depths[nearest]
        edge = 1e-6 * self.thickness  # a place between two layers is in one of them
        inside = (away > -self.thickness / 2 + edge) & (away <= self.thickness / 2 + edge)
        return np.where(inside, nearest, -1)

    def _nearest(self, places: NDArray[np.float64]) -> NDArray[np.intp]:
        middles = (self.depths[1:] + self.depths[:-1]) / 2 + 1e-6 * self.thickness
        return np.searchsorted(middles, places)


def _steps(segmentation: Dataset, frames: SegFrames, normal: NDArray[np.float64]) -> float:
    """How thick the frames are, in mm, 0 if nothing says it: the smallest of what is said of them and their distance.

    Slices that overlap are further apart in their thickness than in space, and some tools repeat it as the distance.
    """
    gaps = np.diff(np.sort(frames.positions @ normal))
    measures = functional(segmentation, 0, "PixelMeasuresSequence")
    values = [abs(number(measures, name) or 0.0) for name in DEPTHS] if measures else []
    said = [value for value in values if value > 0]
    least = SAME_LAYER * min(said, default=float(np.median(gaps[gaps > 1e-3])) if (gaps > 1e-3).any() else 0.0)
    return min([*said, *(float(gap) for gap in gaps if gap > max(least, 1e-3))], default=0.0)


def _plane_of(series: Series, k: int) -> NDArray[np.float64]:
    """From (column, row, 0, 1) of a slice to millimetres in LPS; slices need not be equally far apart."""
    affine: NDArray[np.float64] = LPS_TO_RAS @ series.affine
    position = series.frames[k].position
    if position is not None:
        affine[:3, 3] = position
    return affine


def _is_whole(change: NDArray[np.float64], layers: _Layers) -> bool:
    """Whether every pixel of a slice is one of a frame, or none."""
    across = change[:2, [0, 1]]
    if np.abs(across - np.rint(across)).max() >= GRID_TOLERANCE / 100:
        return False
    if np.abs(change[2, [0, 1]]).max() >= GRID_TOLERANCE / 100 * layers.thickness:
        return False
    start = change[:2, 3]
    if np.abs(start - np.rint(start)).max() >= GRID_TOLERANCE:
        return False
    layer = int(layers.at(change[2:3, 3])[0])
    return layer < 0 or bool(abs(layers.depths[layer] - change[2, 3]) < GRID_TOLERANCE * layers.thickness)


def _sampled(
    volume: NDArray[np.bool_], places: Sequence[NDArray[np.float64]], layers: _Layers, shape: tuple[int, int]
) -> Iterator[NDArray[np.bool_]]:
    """The volume at every pixel (column, row) of each slice.

    `places` map (column, row, 0, 1) to the column and the row of a frame, and to millimetres from the first layer.
    """
    columns, rows = (axis.ravel() for axis in np.meshgrid(*map(np.arange, shape), indexing="ij"))
    index = np.stack([columns, rows, np.zeros(columns.shape), np.ones(columns.shape)])
    for change in places:
        i, j = np.floor(change[:2] @ index + 0.5 - 1e-6).astype(int)
        layer = layers.at(change[2] @ index)
        inside = layer >= 0
        for values, size in zip((i, j), volume.shape, strict=False):
            inside &= (values >= 0) & (values < size)
        plane = np.zeros(columns.shape, bool)
        plane[inside] = volume[i[inside], j[inside], layer[inside]]
        yield plane.reshape(shape)
