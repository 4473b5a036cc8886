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
    along, down = np.array(first.orientation)[:3], np.array(first.orientation)[3:]
    normal = np.cross(along, down)
    depths = np.array([plane.frame.position for plane in planes], np.float64) @ normal
    gaps = np.diff(np.unique(np.round(depths, 3)))
    step = _depth(segmentation) or (float(gaps.min()) if len(gaps) else float(np.linalg.norm(series.affine[:3, 2])))
    layers = np.rint((depths - depths.min()) / step).astype(int)
    volume = np.zeros((*frames.shape[::-1], layers.max() + 1), bool, order="F")
    for plane, layer in zip(planes, layers, strict=True):
        volume[:, :, layer] |= frames.mask(plane).T
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along * spacing[1], down * spacing[0], normal * step], axis=1)
    affine[:3, 3] = planes[int(np.argmin(depths))].frame.position
    to_frames = np.linalg.inv(affine)
    places = [to_frames @ _plane_of(series, k) for k in range(series.grid[2])]
    is_other_grid = not all(_is_whole(change) for change in places)
    bits, found = {}, 0
    for k, mask in enumerate(_sampled(volume, places, series.grid[:2])):
        if mask.any():
            bits[k] = np.packbits(mask)
            found += int(np.count_nonzero(mask))
    outside = 0 if is_other_grid else max(0, int(np.count_nonzero(volume)) - found)
    return Resampled(bits, series.grid[:2], is_other_grid, outside)


def _depth(segmentation: Dataset) -> float:
    measures = functional(segmentation, 0, "PixelMeasuresSequence")
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = number(measures, name) if measures else None
        if value is not None and value > 0:
            return value
    return 0.0


def _plane_of(series: Series, k: int) -> NDArray[np.float64]:
    """From (column, row, 0, 1) of a slice to millimetres in LPS; slices need not be equally far apart."""
    affine: NDArray[np.float64] = LPS_TO_RAS @ series.affine
    position = series.frames[k].position
    if position is not None:
        affine[:3, 3] = position
    return affine


def _is_whole(change: NDArray[np.float64]) -> bool:
    """Whether every pixel of a slice is one of a frame, or between two of them."""
    across = change[:3, [0, 1]]
    return bool(np.abs(across - np.rint(across)).max() < GRID_TOLERANCE / 100) and bool(
        np.abs(change[:3, 3] - np.rint(change[:3, 3])).max() < GRID_TOLERANCE
    )


def _sampled(
    volume: NDArray[np.bool_], places: Sequence[NDArray[np.float64]], shape: tuple[int, int]
) -> Iterator[NDArray[np.bool_]]:
    """The volume at every pixel (column, row) of each slice; `places` map (column, row, 0, 1) to its indices."""
    columns, rows = (axis.ravel() for axis in np.meshgrid(*map(np.arange, shape), indexing="ij"))
    index = np.stack([columns, rows, np.zeros(columns.shape), np.ones(columns.shape)])
    for change in places:
        i, j, layer = np.floor(change[:3] @ index + 0.5 - 1e-6).astype(int)
        inside = np.ones(columns.shape, bool)
        for values, size in zip((i, j, layer), volume.shape, strict=True):
            inside &= (values >= 0) & (values < size)
        plane = np.zeros(columns.shape, bool)
        plane[inside] = volume[i[inside], j[inside], layer[inside]]
        yield plane.reshape(shape)
