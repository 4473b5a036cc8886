# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the slices of a series that highdicom cannot refer to: each is an image of one frame, 1 mm apart.

DICOM allows segmentations of multi-frame images (several of them too), of frames at one position at several times, and
of images without a position in the patient: ultrasound, photographs (PS3.3, A.51.4). highdicom writes frames of images
with a position of their own only. So it gets stand-ins, and the real references and positions are put into the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from lib.dicom.frames import Frame

FRAME_CONTENT, IN_STACK = Tag(0x0020, 0x9111), Tag(0x0020, 0x9057)
POSITION_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
LEFT_OUT = (
    *("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "TotalPixelMatrixOriginSequence", "ImageOrientationSlide"),
    "ImageCenterPointCoordinatesSequence",
)
"""Attributes from which highdicom would take an image for one of several frames or tiles."""


def stand_ins(image: Dataset, count: int) -> list[Dataset]:
    """`count` images with the patient and the study of `image`, which is changed."""
    for name in LEFT_OUT:
        image.pop(name, None)
    image.FrameOfReferenceUID = image.get("FrameOfReferenceUID") or generate_uid()
    image.PositionReferenceIndicator = ""
    image.ImageOrientationPatient, image.PixelSpacing, image.SliceThickness = [1, 0, 0, 0, 1, 0], [1, 1], 1
    images = []
    for number in range(count):
        one = Dataset()
        one.update(image)
        for name in ("SOPInstanceUID", "ImagePositionPatient"):
            one.pop(name, None)  # else the new value would be written into the image's own element
        one.SOPInstanceUID, one.ImagePositionPatient = generate_uid(), [0, 0, number]
        images.append(one)
    return images


def put_references(
    segmentation: Dataset, images: Sequence[Dataset], frames: Sequence[Frame], headers: Mapping[str, Dataset]
) -> list[Frame]:
    """Let a segmentation refer to `frames` instead of to their stand-ins; returns the frame of each of its frames.

    `headers` are those of the frames' instances. A frame of an image of several is referred to by its number.
    """
    meant = {str(image.SOPInstanceUID): frame for image, frame in zip(images, frames, strict=True)}
    numbered = {uid for uid, header in headers.items() if "NumberOfFrames" in header}
    origins = []
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame = meant[str(source.ReferencedSOPInstanceUID)]
        source.ReferencedSOPInstanceUID = frame.instance
        source.ReferencedSOPClassUID = headers[frame.instance].SOPClassUID
        if frame.instance in numbered:
            source.ReferencedFrameNumber = frame.number
        origins.append(frame)
    references = []
    for instance in dict.fromkeys(frame.instance for frame in frames):
        reference = Dataset()
        reference.ReferencedSOPClassUID = headers[instance].SOPClassUID
        reference.ReferencedSOPInstanceUID = instance
        references.append(reference)
    segmentation.SourceImageSequence = DicomSequence(references)
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = DicomSequence(references)
    return origins


def put_positions(segmentation: Dataset, origins: Sequence[Frame], measures: Dataset) -> None:
    """The positions of `origins`, the frame of each frame; `measures` are the size of a pixel and of a slice."""
    orientation = Dataset()
    orientation.ImageOrientationPatient = list(origins[0].orientation or ())
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = (
        DicomSequence([orientation]),
        DicomSequence([measures]),
    )
    for group, origin in zip(segmentation.PerFrameFunctionalGroupsSequence, origins, strict=True):
        position = Dataset()
        position.ImagePositionPatient = list(origin.position or ())
        group.PlanePositionSequence = DicomSequence([position])


def remove_positions(segmentation: Dataset) -> None:
    """The images have no positions, and the segmentation has none either."""
    for group in [*segmentation.SharedFunctionalGroupsSequence, *segmentation.PerFrameFunctionalGroupsSequence]:
        for name in POSITION_GROUPS:
            group.pop(name, None)
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
        segmentation.pop(name, None)


def order_by_slice(segmentation: Dataset, slices: Sequence[int]) -> None:
    """Tell the frames apart by segment and by slice, not by position; `slices` are those of the frames, from 0."""
    for group, number in zip(segmentation.PerFrameFunctionalGroupsSequence, slices, strict=True):
        content = group.FrameContentSequence[0]
        content.StackID, content.InStackPositionNumber = "1", number + 1
        content.DimensionIndexValues = [content.DimensionIndexValues[0], number + 1]
    first, second = segmentation.DimensionIndexSequence[0], Dataset()
    second.DimensionIndexPointer, second.FunctionalGroupPointer = IN_STACK, FRAME_CONTENT
    second.DimensionOrganizationUID = first.DimensionOrganizationUID
    second.DimensionDescriptionLabel = "In-Stack Position Number"
    segmentation.DimensionIndexSequence = DicomSequence([first, second])
