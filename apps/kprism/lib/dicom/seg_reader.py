# SPDX-License-Identifier: Apache-2.0
"""Reading a DICOM Segmentation of any origin as a label map on the grid of its series, with the segments' names.

Viewers store only the slices that contain a segment, and some only a rectangle around it. Frames that name their image
and have its size and position are copied; all others are resampled by their position in the patient, to the nearest
voxel. If segments overlap, the one with the higher number is kept, as viewers draw it on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.frames import Frame, functional
from lib.dicom.seg_frames import Plane, SegFrames
from lib.dicom.series import Series, pixel_spacing
from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS

SEG_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

GRID_TOLERANCE = 0.01
"""A frame is on an image's grid if its corners differ by less than this share of a pixel."""


@dataclass(frozen=True)
class SegLabels:
    """Label map (column, row, slice), the value of every name, and notes on what was left out.

    The values are 1, 2, ... in the order of segment numbers.
    """

    labels: NDArray[np.uint8]
    names: dict[str, int]
    notes: tuple[str, ...] = ()


def referenced_series(header: Dataset) -> list[str]:
    """The series that a segmentation, or a structure set, says it refers to."""
    items = list(header.get("ReferencedSeriesSequence") or [])
    for place in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in place.get("RTReferencedStudySequence") or []:
            items += study.get("RTReferencedSeriesSequence") or []
    named = (str(item.get("SeriesInstanceUID", "")) for item in items)
    return [series for series in dict.fromkeys(named) if series]


def read_seg(segmentation: Dataset, series: Series) -> SegLabels:
    """The label map; RequestError if it is not a SEG, has too many segments, or does not fit on the series' grid."""
    if str(segmentation.get("SOPClassUID")) not in SEG_SOP_CLASSES:
        raise RequestError(f"instance {segmentation.get('SOPInstanceUID')} is not a DICOM segmentation")
    names = segment_names(segmentation)
    if len(names) > 255:
        raise RequestError(f"the segmentation has {len(names)} segments; a label map can have 255")
    frames = SegFrames(segmentation)
    labels = np.zeros(series.grid, np.uint8, order="F")
    values = {number: np.uint8(value) for value, number in enumerate(names, 1)}  # in the order of segment numbers
    grid = _Grid(series, frames.shape, pixel_spacing(segmentation) or (1.0, 1.0))
    stray: dict[int, list[Plane]] = {}
    for plane in frames.planes(names):
        row = grid.row(plane)
        if row is None:
            stray.setdefault(plane.segment, []).append(plane)
        else:
            target = labels[:, :, row].T
            np.maximum(target, frames.mask(plane).view(np.uint8) * values[plane.segment], out=target)
    for number, planes in stray.items():
        mask = _resampled(frames, planes, series, grid.spacing, _depth(segmentation))
        np.maximum(labels, values[number], out=labels, where=mask)
    return SegLabels(labels, unique_names(names))


def segment_names(segmentation: Dataset) -> dict[int, str]:
    """Segment number -> name, in the order of numbers."""
    names = {}
    for item in segmentation.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        if number > 0:
            names[number] = " ".join(str(item.get("SegmentLabel", "")).split()) or f"segment {number}"
    return {number: name for number, name in sorted(names.items()) if name.casefold() != "background"}


def unique_names(names: dict[int, str]) -> dict[str, int]:
    """Name -> value; the segment number is appended to a repeated name."""
    values: dict[str, int] = {}
    for row, (number, name) in enumerate(names.items(), 1):
        values[f"{name} {number}" if name in values else name] = row
    return values


class _Grid:
    """Which image of a series a frame lies on, pixel by pixel; `shape` and `spacing` (row, column) are the frames'."""

    def __init__(self, series: Series, shape: tuple[int, int], spacing: tuple[float, float]) -> None:
        self.spacing = spacing
        self._series, self._index = series, series.index()
        self._is_same_size = shape == series.grid[1::-1]
        column, row, _ = np.linalg.norm(series.affine[:3, :3], axis=0)
        self._image_spacing = float(row), float(column)
        self._tolerance = max(GRID_TOLERANCE * min(spacing), 1e-3)

    def row(self, plane: Plane) -> int | None:
        """The slice of the image that the frame names, if it has the same size and, if both have one, position."""
        row = self._index.get(plane.source) if plane.source else None
        if row is None or not self._is_same_size:
            return None
        ours = self._corners(self._series.frames[row], self._image_spacing)
        theirs = self._corners(plane.frame, self.spacing)
        is_here = not (ours and theirs) or np.abs(np.subtract(ours, theirs)).max() < self._tolerance
        return row if is_here else None

    def _corners(self, frame: Frame, spacing: tuple[float, float]) -> list[float]:
        """The positions (LPS, mm) of three corner pixels, one after the other; empty without a position."""
        if frame.position is None or frame.orientation is None:
            return []
        columns, rows, _ = self._series.grid
        across = [cosine * spacing[1] * (columns - 1) for cosine in frame.orientation[:3]]
        down = [cosine * spacing[0] * (rows - 1) for cosine in frame.orientation[3:]]
        edges = ((0.0, 0.0, 0.0), across, down)
        return [x + step for edge in edges for x, step in zip(frame.position, edge, strict=True)]


def _depth(segmentation: Dataset) -> float:
    measures = functional(segmentation, 0, "PixelMeasuresSequence")
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = measures.get(name) if measures else None
        if value and float(value) > 0:
            return float(value)
    return 0.0


def _resampled(
    frames: SegFrames, planes: list[Plane], series: Series, spacing: tuple[float, float], depth: float
) -> NDArray[np.bool_]:
    """The mask of frames that are not on the series' grid, resampled onto it to the nearest voxel."""
    if not series.positioned or any(
        plane.frame.position is None or plane.frame.orientation is None for plane in planes
    ):
        raise RequestError(f"the segmentation has no positions for its frames on series {series.uid}")
    first = planes[0].frame
    along, down = np.array(first.orientation)[:3], np.array(first.orientation)[3:]
    normal = np.cross(along, down)
    depths = np.array([plane.frame.position for plane in planes], np.float64) @ normal
    gaps = np.diff(np.unique(np.round(depths, 3)))
    step = depth or (float(gaps.min()) if len(gaps) else float(np.linalg.norm(series.affine[:3, 2])))
    layers = np.rint((depths - depths.min()) / step).astype(int)
    volume = np.zeros((*frames.shape[::-1], layers.max() + 1), bool, order="F")
    for plane, layer in zip(planes, layers, strict=True):
        volume[:, :, layer] |= frames.mask(plane).T
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along * spacing[1], down * spacing[0], normal * step], axis=1)
    affine[:3, 3] = planes[int(np.argmin(depths))].frame.position
    mask = _sample(volume, np.linalg.inv(LPS_TO_RAS @ affine) @ series.affine, series.grid)
    if volume.any() and not mask.any():
        raise RequestError(f"the segmentation lies outside series {series.uid}")
    return mask


def _sample(volume: NDArray[np.bool_], change: NDArray[np.float64], grid: tuple[int, int, int]) -> NDArray[np.bool_]:
    """The volume at every voxel of `grid`; `change` maps its indices to the volume's. A slice at a time."""
    result = np.zeros(grid, bool, order="F")
    columns, rows = (axis.ravel() for axis in np.meshgrid(*map(np.arange, grid[:2]), indexing="ij"))
    for k in range(grid[2]):
        index = np.stack([columns, rows, np.full(columns.shape, k), np.ones(columns.shape)])
        i, j, layer = np.floor(change[:3] @ index + 0.5 - 1e-6).astype(int)
        inside = np.ones(columns.shape, bool)
        for values, size in zip((i, j, layer), volume.shape, strict=True):
            inside &= (values >= 0) & (values < size)
        plane = result[:, :, k].reshape(-1)
        plane[inside] = volume[i[inside], j[inside], layer[inside]]
        result[:, :, k] = plane.reshape(grid[:2])
    return result
