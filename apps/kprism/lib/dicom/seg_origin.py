# SPDX-License-Identifier: Apache-2.0
"""Which series a label is of that names none: that of its source images, else that on its frame of reference.

A label is a segmentation, or an RT structure set, whose contours may name images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from lib.dicom.frames import Frame, frames_of
from lib.dicom.source import DicomSource
from lib.dicom.web import SeriesEntry

SEG_ATTRIBUTES = (
    *("SOPInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames", "SourceImageSequence"),
    *("ReferencedSeriesSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ROIContourSequence", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence"),
)
IMAGE_ATTRIBUTES = (
    *("SOPInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient"),
    *("ImageOrientationPatient", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
POSITION_TOLERANCE = 0.01
"""Millimetres between two positions that are one."""


class Origin(NamedTuple):
    """The series, or none and why."""

    images: tuple[str, ...]
    reason: str = ""


def find_series(web: DicomSource, entry: SeriesEntry, instance: str) -> Origin:
    """The series of its study that a segmentation without ReferencedSeriesSequence is of."""
    headers = web.headers(entry.study, entry.series, SEG_ATTRIBUTES)
    segmentation = next(header for header in headers if header.SOPInstanceUID == instance)
    listed = [found for found in web.search(StudyInstanceUID=entry.study) if found.study == entry.study]
    series = {found.series: found for found in listed if found.holds_images}
    images = {name: web.headers(entry.study, name, IMAGE_ATTRIBUTES) for name in series}
    sources = set(_sources(segmentation))
    for name, items in images.items():
        if any(str(item.get("SOPInstanceUID")) in sources for item in items):
            return Origin((name,))
    return _by_frame_of_reference(segmentation, images)


def _sources(segmentation: Dataset) -> Iterator[str]:
    """The images that a segmentation names, wherever it does."""
    for series in segmentation.get("ReferencedSeriesSequence") or []:
        yield from _named(series.get("ReferencedInstanceSequence"))
    yield from _named(segmentation.get("SourceImageSequence"))
    groups = [*(segmentation.get("SharedFunctionalGroupsSequence") or [])]
    groups += segmentation.get("PerFrameFunctionalGroupsSequence") or []
    for group in groups:
        for derivation in group.get("DerivationImageSequence") or []:
            yield from _named(derivation.get("SourceImageSequence"))
    for roi in segmentation.get("ROIContourSequence") or []:
        for contour in roi.get("ContourSequence") or []:
            yield from _named(contour.get("ContourImageSequence"))


def _named(sequence: Sequence[Dataset] | None) -> Iterator[str]:
    for item in sequence or []:
        if item.get("ReferencedSOPInstanceUID"):
            yield str(item.ReferencedSOPInstanceUID)


def _by_frame_of_reference(segmentation: Dataset, images: dict[str, list[Dataset]]) -> Origin:
    """The only series on the same frame of reference, or the only one of them with the same planes."""
    reference = _frame_of_reference(segmentation)
    if not reference:
        return Origin((), "names no images and no frame of reference")
    on_it = [name for name, items in images.items() if any(x.get("FrameOfReferenceUID") == reference for x in items)]
    alike = [name for name in on_it if _has_same_planes(segmentation, images[name])]
    if len(alike) == 1:
        return Origin((alike[0],))
    if len(on_it) == 1:
        return Origin((on_it[0],))
    if not on_it:
        return Origin((), "names no images, and no series of its study is on its frame of reference")
    return Origin((), f"names no images, and {len(alike) or len(on_it)} series of its study fit its frame of reference")


def _frame_of_reference(segmentation: Dataset) -> str:
    """The frame of reference; that of a structure set is with its references, or with its ROIs."""
    rois = segmentation.get("StructureSetROISequence") or []
    named = [segmentation.get("FrameOfReferenceUID")]
    named += [
        place.get("FrameOfReferenceUID") for place in segmentation.get("ReferencedFrameOfReferenceSequence") or []
    ]
    named += [roi.get("ReferencedFrameOfReferenceUID") for roi in rois]
    return next((str(uid) for uid in named if uid), "")


def _has_same_planes(segmentation: Dataset, images: Sequence[Dataset]) -> bool:
    """Whether each frame has the size, the position and the directions of an image."""
    size = segmentation.get("Rows"), segmentation.get("Columns")
    frames = [frame for item in images if (item.get("Rows"), item.get("Columns")) == size for frame in frames_of(item)]
    there = np.array([_numbers(frame) for frame in frames if frame.is_placed])
    wanted = [_numbers(frame) for frame in frames_of(segmentation) if frame.is_placed]
    return bool(wanted and len(there)) and all(
        (np.abs(there - place).max(axis=1) < POSITION_TOLERANCE).any() for place in wanted
    )


def _numbers(frame: Frame) -> tuple[float, ...]:
    return (*(frame.position or ()), *(frame.orientation or ()))
