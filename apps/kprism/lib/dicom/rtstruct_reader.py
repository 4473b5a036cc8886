# SPDX-License-Identifier: Apache-2.0
"""Reading an RT Structure Set of any origin as a label map on the grid of its series, with the names of its ROIs.

A pixel belongs to a ROI if its centre is inside. Contours are drawn on the image that they lie on, or else on the
nearest one, and nothing is interpolated between them. Where ROIs overlap the smaller one counts: a lesion stays visible
inside its organ. ROIs of types for planning (`PLANNING`) are no structures. Whatever is left out is told in a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from kprism_model.polygons import Points, filled
from lib.dicom.contour_planes import ContourPlanes, closed_contours
from lib.dicom.frames import whole_number
from lib.dicom.rtstruct_writer import RTSTRUCT_SOP_CLASS
from lib.dicom.seg_reader import SegLabels, unique_names
from lib.dicom.series import Series
from lib.dicom.text import declares_set, one_text, read_text, whole
from lib.errors import RequestError
from lib.imaging.label_maps import values_in

MAX_ROIS = 255
"""An index map has eight bits a voxel."""

HOLE = 0.9
"""A contour of which at least this part lies inside others is a hole in them; one that reaches out further is added."""

XOR = "CLOSEDPLANAR_XOR"
"""Contours of this type are combined by exclusive or (PS3.3, C.8.8.6.3)."""

PLANNING = frozenset(
    (
        *("EXTERNAL", "PTV", "CTV", "TREATED_VOLUME", "IRRAD_VOLUME", "BOLUS", "REGISTRATION", "ISOCENTER", "SUPPORT"),
        *("FIXATION", "DOSE_REGION", "CONTROL", "DOSE_MEASUREMENT"),
        *("BRACHY_CHANNEL", "BRACHY_ACCESSORY", "BRACHY_SRC_APP", "BRACHY_CHNL_SHLD"),
    )
)
"""Types of ROIs (PS3.3, C.8.8.8.1) that are drawn for a treatment, with margins, and show no structure. A GTV does."""


@dataclass(frozen=True)
class _Patch:
    """A mask (row, column) on one slice, from the pixel at `row` and `column` on."""

    row: int
    column: int
    mask: NDArray[np.bool_]

    def place(self, labels: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
        """The part (row, column) of labels (column, row, slice) that the patch lies on: a view."""
        rows, columns = self.mask.shape
        return labels[self.column : self.column + columns, self.row : self.row + rows, k].T


@dataclass
class _Roi:
    """A structure on the slices that show it."""

    name: str
    patches: dict[int, _Patch] = field(default_factory=dict)

    @property
    def voxels(self) -> int:
        return sum(int(np.count_nonzero(patch.mask)) for patch in self.patches.values())


def read_rtstruct(structures: Dataset, series: Series) -> SegLabels:
    """The label map; RequestError if it is no structure set or none of its closed contours is on the series' images."""
    if str(structures.get("SOPClassUID")) != RTSTRUCT_SOP_CLASS:
        raise RequestError(f"instance {structures.get('SOPInstanceUID')} is not an RT structure set")
    if not series.positioned:
        raise RequestError(f"the images of series {series.uid} have no position, so contours have no place on them")
    notes: list[str] = []
    planes = ContourPlanes(series)
    contours = _contours_by_roi(structures)
    rois: dict[int, _Roi] = {}
    types = _roi_types(structures)
    empty, planning = [], []
    for number, (name, frame_of_reference) in _roi_names(structures).items():
        if types.get(number) in PLANNING:
            planning.append(f"{name!r} ({types[number]})")
            continue
        if not contours.get(number):
            empty.append(name)
            continue
        roi = _Roi(name, _patches(name, contours[number], planes, frame_of_reference, notes))
        if roi.voxels:
            rois[number] = roi
    if empty:
        notes.append(f"Left out, as they have no contours: {', '.join(map(repr, empty))}.")
    if planning:
        notes.append(f"Left out, as they are drawn for a treatment: {', '.join(planning)}.")
    if not rois:
        reason = f"the structure set has no closed contour on the images of series {series.uid}"
        raise RequestError(". ".join([reason, *notes]))
    if len(rois) > MAX_ROIS:
        raise RequestError(f"the structure set has {len(rois)} structures; a label map can have {MAX_ROIS}")
    names = unique_names({number: roi.name for number, roi in rois.items()})
    labels, told = _drawn(series.grid, list(zip(names.items(), rois.values(), strict=True)))
    present = values_in(labels)
    left = {name: value for name, value in names.items() if value in present}
    return SegLabels(labels, left, (*notes, *told))


def _roi_names(structures: Dataset) -> dict[int, tuple[str, str]]:
    """ROI number -> (name, frame of reference), in the order of the structure set."""
    names: dict[int, tuple[str, str]] = {}
    declared = declares_set(structures)
    for item in structures.get("StructureSetROISequence") or []:
        number = whole_number(item, "ROINumber")
        if number is None:
            continue
        short, description = (read_text(item, keyword, declared=declared) for keyword in ("ROIName", "ROIDescription"))
        name = " ".join(whole(short, description).split()) or f"ROI {number}"
        if number in names:
            raise RequestError(
                f"the structure set has two ROIs of the number {number}, {names[number][0]!r} and {name!r}"
            )
        names[number] = name, str(item.get("ReferencedFrameOfReferenceUID") or "")
    return names


def _roi_types(structures: Dataset) -> dict[int, str]:
    """ROI number -> what it is, where that is said."""
    items = structures.get("RTROIObservationsSequence") or []
    types = ((whole_number(item, "ReferencedROINumber"), one_text(item.get("RTROIInterpretedType"))) for item in items)
    return {number: kind.strip().upper() for number, kind in types if number is not None}


def _contours_by_roi(structures: Dataset) -> dict[int, list[Dataset]]:
    """ROI number -> its contours."""
    found: dict[int, list[Dataset]] = {}
    for item in structures.get("ROIContourSequence") or []:
        number = whole_number(item, "ReferencedROINumber")
        contours = item.get("ContourSequence") or []
        if number is None and contours:
            raise RequestError(
                "the structure set is damaged: it has contours that are of no ROI, or it ends within them"
            )
        if number is not None:
            found.setdefault(number, []).extend(contours)
    return found


def _patches(
    name: str, items: list[Dataset], planes: ContourPlanes, frame_of_reference: str, notes: list[str]
) -> dict[int, _Patch]:
    """The masks of a ROI by slice; what is left out of it is added to the notes."""
    contours, unusable = closed_contours(items)
    placed, told = planes.placed(contours, frame_of_reference)
    counts = {"left out: a point, open or damaged": unusable, **told}
    notes += [
        f"Of {name!r}, {count} contour{'s are' if count > 1 else ' is'} {what}."
        for what, count in counts.items()
        if count
    ]
    patches = {}
    for k, group in placed.items():
        patch = _combined([(planes.pixels(contour, k), contour.kind) for contour in group], planes.size)
        if patch is not None:
            patches[k] = patch
    slices = sorted(patches)
    if len(slices) > 3 and np.median(np.diff(slices)) > 1:
        spanned = slices[-1] - slices[0] + 1
        notes.append(f"{name!r} is on {len(slices)} of the {spanned} images that it spans: it has contours there only.")
    return patches


def _combined(contours: list[tuple[Points, str]], size: tuple[int, int]) -> _Patch | None:
    """The mask of the contours of one ROI on one slice; None if they enclose no pixel of it.

    Inner contours are holes, by either convention: a keyhole is part of its contour, and a contour of its own inside
    another one is left out of that. The same contour a second time, whatever its first point, is one contour.
    """
    points = np.concatenate([polygon for polygon, _ in contours])
    low = np.clip(np.floor(points.min(axis=0)), 0, size).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, size).astype(int)
    shape = int(high[1] - low[1]), int(high[0] - low[0])
    if min(shape) <= 0:
        return None
    masks = ((filled([polygon - low], shape), kind) for polygon, kind in contours)
    different = {(part.tobytes(), kind): (part, kind) for part, kind in masks}
    mask = np.zeros(shape, bool)
    for part, kind in sorted(different.values(), key=lambda entry: -int(np.count_nonzero(entry[0]))):
        if kind == XOR:
            mask ^= part
        elif np.count_nonzero(mask & part) >= HOLE * max(np.count_nonzero(part), 1):
            mask &= ~part
        else:
            mask |= part
    return _Patch(int(low[1]), int(low[0]), mask) if mask.any() else None


def _drawn(
    grid: tuple[int, int, int], rois: list[tuple[tuple[str, int], _Roi]]
) -> tuple[NDArray[np.uint8], Iterator[str]]:
    """The label map of structures with their names and values, the smallest drawn last, and what they have lost."""
    labels = np.zeros(grid, np.uint8, order="F")
    sizes = {value: roi.voxels for (_, value), roi in rois}
    titles = {value: name for (name, value), _ in rois}
    lost: Counter[int] = Counter()
    winners: dict[int, list[int]] = {}
    for (_, value), roi in sorted(rois, key=lambda entry: -sizes[entry[0][1]]):
        covered = np.zeros(256, np.int64)
        for k, patch in roi.patches.items():
            place = patch.place(labels, k)
            covered += np.bincount(place[patch.mask], minlength=256)
            place[patch.mask] = value
        for other in np.flatnonzero(covered[1:]) + 1:
            lost[int(other)] += int(covered[other])
            winners.setdefault(int(other), []).append(value)

    def notes() -> Iterator[str]:
        for value in sorted(lost):
            name = repr(titles[value])
            others = ", ".join(repr(titles[winner]) for winner in sorted(winners[value]))
            if lost[value] == sizes[value]:
                yield f"{name} is left out: all of it is also in {others}, and a voxel can have one structure only."
            else:
                count = lost[value]
                yield f"{name} is without {count} voxels that are also in {others}: the smaller structure has them."

    return labels, notes()
