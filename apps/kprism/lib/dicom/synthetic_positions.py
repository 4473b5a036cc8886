# SPDX-License-Identifier: Apache-2.0
"""Synthetic positions for segmentations of images that have no position in the patient: ultrasound, photographs.

DICOM allows such segmentations (the frames refer to images, PS3.3 A.51.4), but highdicom writes more than one frame
only with a frame of reference. So the images get synthetic positions, which are removed from the result again; there,
frames are distinguished by their number in a stack.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import generate_uid

FRAME_CONTENT, IN_STACK = Tag(0x0020, 0x9111), Tag(0x0020, 0x9057)
POSITION_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PlanePositionSlideSequence",
)


def add_synthetic_positions(images: Sequence[Dataset]) -> None:
    """Put the images' frames behind each other, 1 mm apart; changes the given headers."""
    frame_of_reference = generate_uid()
    for number, image in enumerate(images):
        image.FrameOfReferenceUID = frame_of_reference
        image.PositionReferenceIndicator = ""
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [0, 0, number]
        image.PixelSpacing = [1, 1]
        image.SliceThickness = 1
        frames = int(image.get("NumberOfFrames") or 1)
        if frames > 1:
            image.SharedFunctionalGroupsSequence = DicomSequence([_functional_groups(image)])
            places = []
            for frame in range(frames):
                place = Dataset()
                place.ImagePositionPatient = [0, 0, frame]
                group = Dataset()
                group.PlanePositionSequence = DicomSequence([place])
                places.append(group)
            image.PerFrameFunctionalGroupsSequence = DicomSequence(places)


def _functional_groups(image: Dataset) -> Dataset:
    """The shared functional groups with the attributes of a single-frame image's header."""
    measures, orientation, group = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    group.PixelMeasuresSequence, group.PlaneOrientationSequence = (
        DicomSequence([measures]),
        DicomSequence([orientation]),
    )
    return group


def remove_synthetic_positions(segmentation: Dataset) -> None:
    """Remove the synthetic positions; frames are ordered by segment and by slice."""
    slices = {}
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        if "PlanePositionSequence" in group:
            place = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
            slices[id(group)] = round(place) + 1
    for group in [*segmentation.SharedFunctionalGroupsSequence, *segmentation.PerFrameFunctionalGroupsSequence]:
        content = group.get("FrameContentSequence")
        if content:
            content[0].StackID = "1"
            content[0].InStackPositionNumber = slices.get(id(group), 1)
            content[0].DimensionIndexValues = [content[0].DimensionIndexValues[0], slices.get(id(group), 1)]
        for name in POSITION_GROUPS:
            if name in group:
                delattr(group, name)
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
        if name in segmentation:
            delattr(segmentation, name)
    first, second = segmentation.DimensionIndexSequence[0], Dataset()
    second.DimensionIndexPointer, second.FunctionalGroupPointer = IN_STACK, FRAME_CONTENT
    second.DimensionOrganizationUID = first.DimensionOrganizationUID
    second.DimensionDescriptionLabel = "In-Stack Position Number"
    segmentation.DimensionIndexSequence = DicomSequence([first, second])
