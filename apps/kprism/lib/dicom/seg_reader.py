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

from lib.dicom.frames import Frame, functional, numbers
from lib.dicom.series import Series, pixel_spacing
from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS

SEG_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

GRID_TOLERANCE = 0.01
"""A frame is on an image's grid if its corners differ by less than this share of a pixel."""


@dataclass(frozen=True)
class SegLabels:
    """Label map (column, row, slice) and the value of every name, 1, 2, ... in the order of segment numbers."""

    labels: NDArray[np.uint8]
    names: dict[str, int]


@dataclass(frozen=True)
class Plane:
    """One frame of the segmentation: its mask (row, column), segment, the image that it names, and its position."""

    mask: NDArray[np.bool_]
    segment: int
    source: tuple[str, int] | None
    frame: Frame


def referenced_series(header: Dataset) -> list[str]:
    """The series that a segmentation says it refers to."""
    named = [str(item.get("SeriesInstanceUID", "")) for item in header.get("ReferencedSeriesSequence") or []]
    return [series for series in named if series]


def read_seg(segmentation: Dataset, series: Series) -> SegLabels:
    """The label map; RequestError if it is not a SEG, has too many segments, or does not fit on the series' grid."""
    if str(segmentation.get("SOPClassUID")) not in SEG_SOP_CLASSES:
        raise RequestError(f"instance {segmentation.get('SOPInstanceUID')} is not a DICOM segmentation")
    names = segment_names(segmentation)
    if len(names) > 255:
        raise RequestError(f"the segmentation has {len(names)} segments; a label map can have 255")
    value = {number: row for row, number in enumerate(names, 1)}
    labels = np.zeros(series.grid, np.uint8, order="F")
    index = series.index()
    stray: dict[int, list[Plane]] = {}
    spacing = pixel_spacing(segmentation) or (1.0, 1.0)
    for plane in sorted(_planes(segmentation, set(names)), key=lambda plane: plane.segment):
        row = index.get(plane.source) if plane.source else None
        if row is not None and _on_grid(plane, series, row, spacing):
            labels[:, :, row][plane.mask.T] = value[plane.segment]
        else:
            stray.setdefault(plane.segment, []).append(plane)
    for number, planes in stray.items():
        labels[_resampled(planes, series, spacing, _depth(segmentation))] = value[number]
    return SegLabels(labels, _unique(names))


def segment_names(segmentation: Dataset) -> dict[int, str]:
    """Segment number -> name, in the order of numbers."""
    names = {}
    for item in segmentation.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        if number > 0:
            names[number] = " ".join(str(item.get("SegmentLabel", "")).split()) or f"segment {number}"
    return {number: name for number, name in sorted(names.items()) if name.casefold() != "background"}


def _unique(names: dict[int, str]) -> dict[str, int]:
    """Name -> value; the segment number is appended to a repeated name."""
    values: dict[str, int] = {}
    for row, (number, name) in enumerate(names.items(), 1):
        values[f"{name} {number}" if name in values else name] = row
    return values


def _planes(segmentation: Dataset, wanted: set[int]) -> list[Plane]:
    pixels = np.asarray(segmentation.pixel_array)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    labelmap = str(segmentation.get("SegmentationType")) == "LABELMAP"
    threshold = 0.5
    if str(segmentation.get("SegmentationType")) == "FRACTIONAL":
        threshold = float(segmentation.get("MaximumFractionalValue") or 255) / 2
    planes = []
    for number, frame in enumerate(pixels):
        source, place = _source(segmentation, number), _frame(segmentation, number)
        if labelmap:
            for segment in sorted({int(value) for value in np.unique(frame)} & wanted):
                planes.append(Plane(frame == segment, segment, source, place))
            continue
        group = functional(segmentation, number, "SegmentIdentificationSequence")
        segment = int(group.ReferencedSegmentNumber) if group else 1
        if segment in wanted:
            planes.append(Plane(frame > threshold, segment, source, place))
    return planes


def _source(segmentation: Dataset, number: int) -> tuple[str, int] | None:
    derivation = functional(segmentation, number, "DerivationImageSequence")
    for item in (derivation.get("SourceImageSequence") or []) if derivation else []:
        frame = item.get("ReferencedFrameNumber")
        first = frame[0] if isinstance(frame, list) or hasattr(frame, "__iter__") else frame
        return str(item.ReferencedSOPInstanceUID), int(first or 1)
    return None


def _frame(segmentation: Dataset, number: int) -> Frame:
    position = functional(segmentation, number, "PlanePositionSequence")
    orientation = functional(segmentation, number, "PlaneOrientationSequence")
    return Frame(
        "",
        number + 1,
        numbers(position, "ImagePositionPatient", 3) if position else None,
        numbers(orientation, "ImageOrientationPatient", 6) if orientation else None,
    )


def _on_grid(plane: Plane, series: Series, row: int, spacing: tuple[float, float]) -> bool:
    """Whether a frame covers its image pixel by pixel: the same size and, if both have one, the same position."""
    columns, rows, _ = series.grid
    if plane.mask.shape != (rows, columns):
        return False
    image = series.frames[row]
    if None in (plane.frame.position, plane.frame.orientation, image.position, image.orientation):
        return True
    tolerance = GRID_TOLERANCE * min(spacing)
    corners = ((0, 0), (columns - 1, 0), (0, rows - 1))
    step = np.linalg.norm(series.affine[:3, :2], axis=0)
    ours = [_corner(image, at, (step[1], step[0])) for at in corners]
    theirs = [_corner(plane.frame, at, spacing) for at in corners]
    return bool(np.abs(np.array(ours) - theirs).max() < max(tolerance, 1e-3))


def _corner(frame: Frame, at: tuple[int, int], spacing: tuple[float, float]) -> NDArray[np.float64]:
    """The position (LPS, mm) of the pixel at (column, row)."""
    orientation = np.array(frame.orientation)
    return np.asarray(
        np.array(frame.position) + orientation[:3] * at[0] * spacing[1] + orientation[3:] * at[1] * spacing[0]
    )


def _depth(segmentation: Dataset) -> float:
    measures = functional(segmentation, 0, "PixelMeasuresSequence")
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = measures.get(name) if measures else None
        if value and float(value) > 0:
            return float(value)
    return 0.0


def _resampled(planes: list[Plane], series: Series, spacing: tuple[float, float], depth: float) -> NDArray[np.bool_]:
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
    volume = np.zeros((planes[0].mask.shape[1], planes[0].mask.shape[0], layers.max() + 1), bool)
    for plane, layer in zip(planes, layers, strict=True):
        volume[:, :, layer] |= plane.mask.T
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along * spacing[1], down * spacing[0], normal * step], axis=1)
    affine[:3, 3] = planes[int(np.argmin(depths))].frame.position
    mask = _sample(volume, np.linalg.inv(LPS_TO_RAS @ affine) @ series.affine, series.grid)
    if volume.any() and not mask.any():
        raise RequestError(f"the segmentation lies outside series {series.uid}")
    return mask


def _sample(volume: NDArray[np.bool_], change: NDArray[np.float64], grid: tuple[int, int, int]) -> NDArray[np.bool_]:
    """The volume at every voxel of `grid`; `change` maps its indices to the volume's. A slice at a time."""
    result = np.zeros(grid, bool)
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
