# SPDX-License-Identifier: Apache-2.0
"""The series that a structure set belongs to if it does not name one: by its contours' images, or by its place."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

from lib.dicom.web import DicomWeb, SeriesEntry

ATTRIBUTES = ("ROIContourSequence", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence")


def rtstruct_images(web: DicomWeb, entry: SeriesEntry) -> tuple[str, ...]:
    """The series of the study that hold images which the contours name, else those in the same frame of reference.

    Of several in one frame of reference the one with most images comes first.
    """
    headers = web.headers(entry.study, entry.series, ATTRIBUTES)
    images = {uid for header in headers for uid in _named_images(header)}
    frames = {uid for header in headers for uid in _frames_of_reference(header)}
    by_image: list[str] = []
    by_frame: list[str] = []
    listed = web.search(StudyInstanceUID=entry.study)
    candidates = (other for other in listed if other.study == entry.study and other.holds_images)
    for candidate in sorted(candidates, key=lambda other: (-other.instances, other.series)):
        found = web.headers(candidate.study, candidate.series, ("SOPInstanceUID", "FrameOfReferenceUID"))
        if images & {str(header.get("SOPInstanceUID")) for header in found}:
            by_image.append(candidate.series)
        if frames & {str(header.get("FrameOfReferenceUID")) for header in found}:
            by_frame.append(candidate.series)
    return tuple(by_image or by_frame)


def _named_images(header: Dataset) -> Iterator[str]:
    for roi in header.get("ROIContourSequence") or []:
        for contour in roi.get("ContourSequence") or []:
            for image in contour.get("ContourImageSequence") or []:
                yield str(image.get("ReferencedSOPInstanceUID"))


def _frames_of_reference(header: Dataset) -> Iterator[str]:
    named = [item.get("FrameOfReferenceUID") for item in header.get("ReferencedFrameOfReferenceSequence") or []]
    named += [item.get("ReferencedFrameOfReferenceUID") for item in header.get("StructureSetROISequence") or []]
    yield from (str(uid) for uid in named if uid)
