# SPDX-License-Identifier: Apache-2.0
"""A label map on the grid of a series as a DICOM Segmentation (PS3.3, A.51), of any kind of image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime

import highdicom
import numpy as np
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from lib.dicom.segments import cielab, codes_of, colour_of
from lib.dicom.series import Series
from lib.dicom.unplaced import place_anywhere, unplace
from lib.errors import RequestError
from lib.images import describe

# Names without a caret are common and none of our business.
warnings.filterwarnings("ignore", ".*unlikely to represent the intended person name", UserWarning)

MANUFACTURER = "K-Prism"
SERIES_NUMBER = 300

# What a segmentation takes over from its images; scanners and exporters leave some of it out.
EXPECTED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


def write_seg(
    labels: NDArray[np.uint8], names: Mapping[str, int], series: Series, description: str, algorithm: str = ""
) -> Dataset:
    """A SEG of `labels` (column, row, slice), whose values `names` name; segments are numbered in the order of names.

    `description` becomes the series description; `algorithm`, if given, names what drew it and marks the segments as
    semi-automatic. Names without a voxel are left out. RequestError if nothing is left, if a value has no name, or if
    the labels are not on the series' grid.
    """
    if labels.shape != series.grid:
        raise RequestError(
            f"the label has {describe(labels.shape)} voxels, series {series.uid} {describe(series.grid)}"
        )
    present = [int(value) for value in np.unique(labels) if value]
    unnamed = set(present) - set(names.values())
    if unnamed:
        raise RequestError(f"the label holds the value {min(unnamed)}, which no name belongs to")
    kept = [(name, value) for name, value in names.items() if value in present]
    if not kept:
        raise RequestError("the label is empty; DICOM SEG needs at least one voxel")
    table = np.zeros(256, np.uint8)
    for number, (_, value) in enumerate(kept, 1):
        table[value] = number
    order = _order(series)
    segmentation = Segmentation(
        source_images=_sources(series, order),
        pixel_array=np.ascontiguousarray(table[labels].transpose(2, 1, 0)[order]),
        segmentation_type="BINARY",
        segment_descriptions=[_segment(number, name, algorithm) for number, (name, _) in enumerate(kept, 1)],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="K-Prism for MONAI Label",
        software_versions="1",
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=description[:64],
        series_description=description[:64],
    )
    for item, (name, _) in zip(segmentation.SegmentSequence, kept, strict=True):
        item.RecommendedDisplayCIELabValue = cielab(colour_of(name))
    if not series.placed:
        unplace(segmentation)
    now = datetime.now()
    segmentation.SeriesDate, segmentation.SeriesTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    return segmentation


def _segment(number: int, name: str, algorithm: str) -> SegmentDescription:
    category, kind = codes_of(name)
    identification = None
    if algorithm:
        family = Code("123109", "DCM", "Manual Processing")
        identification = AlgorithmIdentificationSequence(algorithm[:64], family, version="1")
    return SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="SEMIAUTOMATIC" if algorithm else "MANUAL",
        algorithm_identification=identification,
        tracking_uid=highdicom.UID(),
        tracking_id=name[:64],
    )


def _order(series: Series) -> list[int]:
    """The slices in the order of the images' own frames, which highdicom wants: instance by instance."""
    instances = list(dict.fromkeys(frame.instance for frame in series.frames))
    if len(instances) > 1 and len(instances) != len(series.frames):
        raise RequestError(
            f"series {series.uid} holds {len(instances)} images of several frames each; "
            "DICOM SEG can refer to one of them only"
        )
    return sorted(
        range(len(series.frames)),
        key=lambda row: (instances.index(series.frames[row].instance), series.frames[row].number),
    )


def _sources(series: Series, order: list[int]) -> list[Dataset]:
    """The images in that order, completed; if they have no place in common, on a made-up grid (see `unplace`)."""
    by_instance = {str(header.SOPInstanceUID): header for header in series.headers}
    sources = []
    for instance in dict.fromkeys(series.frames[row].instance for row in order):
        source = Dataset()
        source.update(by_instance[instance])
        for name in EXPECTED:
            if name not in source:
                setattr(source, name, "")
        if series.placed and "FrameOfReferenceUID" not in source:
            source.FrameOfReferenceUID = generate_uid(entropy_srcs=[series.uid, "frame of reference"])
        sources.append(source)
    if not series.placed:
        place_anywhere(sources)
    return sources
