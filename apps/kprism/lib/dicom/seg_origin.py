# SPDX-License-Identifier: Apache-2.0
"""Which series a label is of that names none: that of its source images, else that on its frame of reference.

A label is a segmentation, or an RT structure set, whose contours may name images.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
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
    is_ambiguous: bool = False
    """Several series fit."""


def find_series(web: DicomSource, entry: SeriesEntry, instance: str) -> Origin:
    """The series of its patient that a segmentation without ReferencedSeriesSequence is of.

    The images that it names come first, then the frame of reference; its own study before the patient's others, which
    are only looked at if need be.
    """
    headers = web.headers(entry.study, entry.series, SEG_ATTRIBUTES)
    segmentation = next(header for header in headers if header.SOPInstanceUID == instance)
    sources = set(_sources(segmentation))
    listed = [found for found in web.search(StudyInstanceUID=entry.study) if found.study == entry.study]
    images = _headers(web, listed)
    named = _named_series(sources, images)
    if named:
        return Origin((named,))
    by_place = _by_frame_of_reference(segmentation, images)
    if by_place.images and not sources:
        return by_place
    others = _headers(web, _other_studies(web, entry))
    named = _named_series(sources, others)
    if named:
        return Origin((named,))
    if by_place.images or by_place.is_ambiguous:
        return by_place
    return _by_frame_of_reference(segmentation, images | others)


def _headers(web: DicomSource, entries: Iterable[SeriesEntry]) -> dict[str, list[Dataset]]:
    """The headers of each series with images."""
    there = {found.series: found for found in entries if found.holds_images}
    return {name: web.headers(found.study, name, IMAGE_ATTRIBUTES) for name, found in there.items()}


def _other_studies(web: DicomSource, entry: SeriesEntry) -> list[SeriesEntry]:
    """The series of the patient in other studies; none if the patient has no identifier."""
    if not entry.patient:
        return []
    found = web.search(PatientID=entry.patient)  # wildcards in it find more, and filters may be ignored
    return [series for series in found if series.patient == entry.patient and series.study != entry.study]


def _named_series(sources: Container[str], images: Mapping[str, Sequence[Dataset]]) -> str | None:
    """The first series with an image that is named."""
    found = (name for name, items in images.items() if any(str(x.get("SOPInstanceUID")) in sources for x in items))
    return next(found, None)


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


def _by_frame_of_reference(segmentation: Dataset, images: Mapping[str, Sequence[Dataset]]) -> Origin:
    """The only series on the same frame of reference, or the only one of them with the same planes."""
    reference = _frame_of_reference(segmentation)
    if not reference:
        return Origin((), "names no images that are here, and no frame of reference")
    on_it = [name for name, items in images.items() if any(x.get("FrameOfReferenceUID") == reference for x in items)]
    alike = [name for name in on_it if _has_same_planes(segmentation, images[name])]
    if len(alike) == 1:
        return Origin((alike[0],))
    if len(on_it) == 1:
        return Origin((on_it[0],))
    if not on_it:
        return Origin((), "names no images that are here, and no series of its patient is on its frame of reference")
    fitting = len(alike) or len(on_it)
    return Origin(
        (), f"names no images that are here, and {fitting} series of its patient fit its frame of reference", True
    )


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
