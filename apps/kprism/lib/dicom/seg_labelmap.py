# SPDX-License-Identifier: Apache-2.0
"""A segmentation as a Label Map Segmentation (PS3.3, A.51 and C.8.20.2): one frame a slice, its values the segments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID

BINARY, LABELMAP = "binary", "labelmap"
SEG_TYPES = (BINARY, LABELMAP)
"""How a segmentation is stored: a frame for each structure in each slice, or one for all of them."""

STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")


def to_label_map(segmentation: Dataset, planes: dict[int, NDArray[np.uint8]], slices: list[int]) -> None:
    """Make a label map of a binary segmentation; `slices` are those of its frames.

    `planes` are the segment numbers (row, column) on each of these slices.
    """
    segmentation.SOPClassUID = segmentation.file_meta.MediaStorageSOPClassUID = STORAGE
    segmentation.SegmentationType, segmentation.SegmentsOverlap = "LABELMAP", "NO"
    segmentation.BitsAllocated = segmentation.BitsStored = 8
    segmentation.HighBit = 7
    segmentation.add_new("PixelPaddingValue", "US", 0)
    groups: dict[int, Dataset] = {}
    for k, group in zip(slices, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        groups.setdefault(k, group)
    frames = [_without_segment(groups[k]) for k in sorted(groups)]
    segmentation.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    segmentation.NumberOfFrames = len(frames)
    segmentation.DimensionIndexSequence = DicomSequence(segmentation.DimensionIndexSequence[1:])
    data = b"".join(planes[k].tobytes() for k in sorted(groups))
    segmentation.PixelData = data + b"\0" * (len(data) % 2)
    segmentation["PixelData"].VR = "OB"


def _without_segment(group: Dataset) -> Dataset:
    """The functional groups of a frame that is not of one segment only."""
    del group.SegmentIdentificationSequence
    content = group.FrameContentSequence[0]
    values: Any = content.DimensionIndexValues
    content.DimensionIndexValues = list(values)[1:]
    return group
