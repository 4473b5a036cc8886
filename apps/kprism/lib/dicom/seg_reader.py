# SPDX-License-Identifier: Apache-2.0
"""Reading a DICOM Segmentation of any origin as a label map on the grid of its series, with the segments' names.

Viewers store only the slices that contain a segment, and some only a rectangle around it. Frames that name their image
and have its size and position are copied; all others are resampled by their position in the patient, to the nearest
voxel. If segments overlap, the smaller one is kept there, a lesion in its organ; of equal ones that with the higher
number. What a label map cannot hold is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.frames import Frame
from lib.dicom.placing import pixel_spacing
from lib.dicom.seg_frames import Plane, SegFrames
from lib.dicom.seg_resampling import Resampled, resampled
from lib.dicom.series import Series
from lib.dicom.text import declares_set, read_text, whole
from lib.errors import RequestError

SEG_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

SAME_PIXEL = 0.25
"""A frame is on the image that it names if its pixels are nearer to those of the image than this part of one.

Directions that are rounded in the header of an image, and made exact by another tool, shift the far corner."""


@dataclass(frozen=True)
class SegLabels:
    """Label map (column, row, slice) and the value of every name, 1, 2, ... in the order of segment numbers.

    `notes` are sentences about what is not as it was drawn.
    """

    labels: NDArray[np.uint8]
    names: dict[str, int]
    notes: tuple[str, ...] = ()


def referenced_series(header: Dataset) -> list[str]:
    """The series that a segmentation, or a structure set, says it refers to."""
    items = list(header.get("ReferencedSeriesSequence") or [])
    for study in header.get("StudiesContainingOtherReferencedInstancesSequence") or []:
        items += study.get("ReferencedSeriesSequence") or []
    for place in header.get("ReferencedFrameOfReferenceSequence") or []:
        for study in place.get("RTReferencedStudySequence") or []:
            items += study.get("RTReferencedSeriesSequence") or []
    named = (str(item.get("SeriesInstanceUID", "")) for item in items)
    return [series for series in dict.fromkeys(named) if series]


def read_seg(segmentation: Dataset, series: Series) -> SegLabels:
    """The label map; RequestError if it is not a SEG, has too many segments, or does not fit on the series' grid."""
    if str(segmentation.get("SOPClassUID")) not in SEG_SOP_CLASSES:
        raise RequestError(f"instance {segmentation.get('SOPInstanceUID')} is not a DICOM segmentation")
    numbered = segment_names(segmentation)
    if not numbered:
        raise RequestError("the segmentation names no segments")
    if len(numbered) > 255:
        raise RequestError(f"the segmentation has {len(numbered)} segments; a label map can have 255")
    names = unique_names(numbered)
    title = dict(zip(numbered, names, strict=True))
    drawing = _Drawing(segmentation, series, list(numbered), title)
    labels = drawing.labels()
    lost = {title[number] for number, voxels in drawing.lost.items() if voxels == drawing.sizes[number]}
    kept = {name: value for name, value in names.items() if name not in lost}
    return SegLabels(labels, kept, tuple(drawing.notes()))


class _Drawing:
    """The segments (`numbers`, with their `titles`) of a segmentation as they are drawn into a label map."""

    def __init__(
        self, segmentation: Dataset, series: Series, numbers: Sequence[int], titles: Mapping[int, str]
    ) -> None:
        self._frames = SegFrames(segmentation)
        self._segmentation, self._series, self._titles = segmentation, series, titles
        self._grid = _Grid(series, self._frames.shape, pixel_spacing(segmentation))
        self._values = {number: np.uint8(value) for value, number in enumerate(numbers, 1)}
        self._on_images: dict[int, list[tuple[int, Plane]]] = {}
        stray: dict[int, list[Plane]] = {}
        for plane in self._frames.planes(numbers):
            row = self._grid.row(plane)
            if row is None:
                stray.setdefault(plane.segment, []).append(plane)
            else:
                self._on_images.setdefault(plane.segment, []).append((row, plane))
        self._unplaced: dict[int, int] = {}
        self._resampled = {
            number: found for number, planes in stray.items() if (found := self._resample(number, planes))
        }
        self._check()
        self.sizes: Counter[int] = Counter()
        self.lost: Counter[int] = Counter()
        self._winners: dict[int, set[int]] = {}

    def labels(self) -> NDArray[np.uint8]:
        """The label map; where segments overlap, the smaller ones are drawn over the others."""
        labels, overlap = self._drawn(sorted(self._values))
        if overlap:
            sizes = self.sizes.copy()
            labels, _ = self._drawn(sorted(self._values, key=lambda number: (-sizes[number], number)))
        return labels

    def _drawn(self, order: Sequence[int]) -> tuple[NDArray[np.uint8], bool]:
        """The label map with the segments one over the other, and whether some overlap."""
        labels = np.zeros(self._series.grid, np.uint8, order="F")
        self.sizes.clear()
        self.lost.clear()
        self._winners.clear()
        for number in order:
            for row, plane in self._on_images.get(number, ()):
                self._put(labels[:, :, row].T, self._frames.mask(plane), number)
            if number in self._resampled:
                for row, mask in self._resampled[number].planes():
                    self._put(labels[:, :, row], mask, number)
        return labels, bool(self.lost)

    def _put(self, target: NDArray[np.uint8], mask: NDArray[np.bool_], number: int) -> None:
        """Draw the mask of a segment, and note which others it covers."""
        value = self._values[number]
        before = target[mask]
        self.sizes[number] += before.size - int(np.count_nonzero(before == value))
        if before.any():
            numbers = {int(known): segment for segment, known in self._values.items()}
            for covered, count in enumerate(np.bincount(before)):
                if covered not in (0, value) and count:
                    self.lost[numbers[covered]] += int(count)
                    self._winners.setdefault(numbers[covered], set()).add(number)
        target[mask] = value

    def _resample(self, number: int, planes: list[Plane]) -> Resampled | None:
        """The mask of frames that are on no image of the series; None if none of them has a position."""
        placed = [plane for plane in planes if plane.frame.is_placed] if self._series.positioned else []
        if len(placed) < len(planes):
            self._unplaced[number] = len(planes) - len(placed)
        if not placed:
            return None
        return resampled(self._frames, placed, self._series, self._grid.spacing, self._segmentation)

    def _check(self) -> None:
        """RequestError if nothing is on the series."""
        if self._on_images or any(found.bits for found in self._resampled.values()):
            return
        if self._frames.unnamed and not self._unplaced and not self._resampled:
            raise RequestError(f"the segmentation shows the segments {self._unnamed()}, which it does not name")
        if self._unplaced:
            raise RequestError(f"the segmentation has no positions for its frames on series {self._series.uid}")
        if self._resampled:
            raise RequestError(f"the segmentation lies outside series {self._series.uid}")

    def notes(self) -> Iterator[str]:
        """Sentences about what is not as it was drawn."""
        if self._frames.is_fractional:
            yield "The segmentation is fractional: voxels of more than one half belong to a structure."
        for number, voxels in self.lost.items():
            others = ", ".join(repr(self._titles[winner]) for winner in sorted(self._winners[number]))
            name = repr(self._titles[number])
            if voxels == self.sizes[number]:
                yield f"{name} is left out: all of it is also in {others}, and a voxel can have one structure only."
            else:
                yield f"{name} is without {voxels} voxels that are also in {others}: the smaller structure has them."
        moved = [self._titles[number] for number, found in self._resampled.items() if found.is_other_grid]
        if moved:
            yield f"{_listed(moved)} was drawn on another grid and is taken to the nearest voxel."
        for number, found in self._resampled.items():
            if found.outside:
                yield f"{found.outside} voxels of {self._titles[number]!r} lie outside the series and are left out."
        for number, count in self._unplaced.items():
            yield f"{count} frames of {self._titles[number]!r} are on no image of the series and are left out."
        if self._frames.unnamed:
            yield f"The segmentation shows the segments {self._unnamed()}, which it does not name; they are left out."

    def _unnamed(self) -> str:
        return ", ".join(map(str, sorted(self._frames.unnamed)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def segment_names(segmentation: Dataset) -> dict[int, str]:
    """Segment number -> name, in the order of numbers; a name that is too long for a label is the description."""
    declared = declares_set(segmentation)
    names = {}
    for item in segmentation.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        if number > 0:
            short, description = (
                read_text(item, keyword, declared=declared or declares_set(item))
                for keyword in ("SegmentLabel", "SegmentDescription")
            )
            names[number] = " ".join(whole(short, description).split()) or f"segment {number}"
    return {number: name for number, name in sorted(names.items()) if name.casefold() != "background"}


def unique_names(names: dict[int, str]) -> dict[str, int]:
    """Name -> value; the segment number is appended to a repeated name, and again if that is a name as well."""
    values: dict[str, int] = {}
    for row, (number, name) in enumerate(names.items(), 1):
        while name in values:
            name = f"{name} {number}"
        values[name] = row
    return values


class _Grid:
    """Which image of a series a frame lies on, pixel by pixel; `shape` and `spacing` (row, column) are the frames'."""

    def __init__(self, series: Series, shape: tuple[int, int], spacing: tuple[float, float] | None) -> None:
        self._series, self._index = series, series.index()
        self._is_same_size = shape == series.grid[1::-1]
        column, row, _ = np.linalg.norm(series.affine[:3, :3], axis=0)
        self._image_spacing = float(row), float(column)
        self.spacing = spacing or (self._image_spacing if self._is_same_size else (1.0, 1.0))
        self._tolerance = SAME_PIXEL * min(self.spacing)

    def row(self, plane: Plane) -> int | None:
        """The slice of an image that the frame names, if it has the same size and, if both have one, position."""
        rows = (self._index.get(source) for source in plane.sources) if self._is_same_size else ()
        return next((row for row in rows if row is not None and self._is_on(plane, row)), None)

    def _is_on(self, plane: Plane, row: int) -> bool:
        ours = self._corners(self._series.frames[row], self._image_spacing)
        theirs = self._corners(plane.frame, self.spacing)
        return not (ours and theirs) or bool(np.abs(np.subtract(ours, theirs)).max() < self._tolerance)

    def _corners(self, frame: Frame, spacing: tuple[float, float]) -> list[float]:
        """The positions (LPS, mm) of three corner pixels, one after the other; empty without a position."""
        if frame.position is None or frame.orientation is None:
            return []
        columns, rows, _ = self._series.grid
        along, down = (np.array(part) / np.linalg.norm(part) for part in (frame.orientation[:3], frame.orientation[3:]))
        edges = (np.zeros(3), along * spacing[1] * (columns - 1), down * spacing[0] * (rows - 1))
        return [float(x) for edge in edges for x in frame.position + edge]
