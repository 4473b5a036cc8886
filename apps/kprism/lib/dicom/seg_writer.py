# SPDX-License-Identifier: Apache-2.0
"""Writing a label map on the grid of a series as a DICOM Segmentation (PS3.3, A.51), for any kind of image.

highdicom makes everything but the pixels. It would copy each of them several times, eight bytes of memory for a voxel
of the series. So it gets a picture of one pixel for each segment instead of each slice, which says what the slice
shows, and the masks are put into the frames that it makes of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime
from itertools import islice

import highdicom
import numpy as np
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, DSfloat, PersonName

from lib.dicom.frames import number, numbers
from lib.dicom.seg_labelmap import BINARY, LABELMAP, to_label_map
from lib.dicom.segments import cielab, codes_of, colour_of
from lib.dicom.series import Series
from lib.dicom.stand_ins import order_by_slice, put_positions, put_references, remove_positions, stand_ins
from lib.dicom.text import TEXT_LENGTH, UTF_8, label, one_text, to_utf_8
from lib.errors import RequestError
from lib.imaging.label_maps import values_by_plane
from lib.imaging.medical_image import describe

# Names without a caret are common.
warnings.filterwarnings("ignore", ".*unlikely to represent the intended person name", UserWarning)

MANUFACTURER = "K-Prism"
SERIES_NUMBER = 300

# Attributes that highdicom copies from the images; some scanners and exporters omit them.
REQUIRED_ATTRIBUTES = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


def write_seg(
    labels: NDArray[np.uint8],
    names: Mapping[str, int],
    series: Series,
    description: str,
    algorithm: str = "",
    *,
    seg_type: str = BINARY,
) -> Dataset:
    """A SEG of `labels` (column, row, slice) with the values `names`; segments are numbered in the order of names.

    `description` becomes the series description. `algorithm`, if given, is the name of the algorithm, and the segments
    are marked as semi-automatic. `seg_type` is one of `SEG_TYPES`. Names without a voxel are left out. RequestError if
    no voxel is labelled, a value or a segment has no name that fits, or the labels are not on the series' grid.
    """
    if labels.shape != series.grid:
        raise RequestError(
            f"the label has {describe(labels.shape)} voxels, series {series.uid} {describe(series.grid)}"
        )
    labels, series = labelled_volume(labels, series)
    shown = values_by_plane(labels)
    kept = kept_names(set().union(*shown), names)
    is_simple = _is_simple(series)
    numbers = {names[name]: number for number, name in enumerate(kept, 1)}
    sources = _sources(series, len(kept)) if is_simple else stand_ins(_first_source(series, len(kept)), len(shown))
    segmentation = Segmentation(
        source_images=sources,
        pixel_array=_pictures(shown, numbers, len(kept)),
        segmentation_type="BINARY",
        segment_descriptions=[_segment(number, name, algorithm) for number, name in enumerate(kept, 1)],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="K-Prism for MONAI Label",
        software_versions="1",
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=label(description),
        series_description=label(description),
    )
    segmentation.SpecificCharacterSet = UTF_8
    if not is_simple:
        _put_origins(segmentation, sources, series)
    _put_pixels(segmentation, labels, numbers, series, seg_type)
    for item, name in zip(segmentation.SegmentSequence, kept, strict=True):
        item.RecommendedDisplayCIELabValue = cielab(colour_of(name))
        item.SegmentDescription = name
    now = datetime.now()
    segmentation.SeriesDate, segmentation.SeriesTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    return segmentation


def labelled_volume(labels: NDArray[np.uint8], series: Series) -> tuple[NDArray[np.uint8], Series]:
    """The labels of one volume and the series of its images alone, if only one of several (phases, ...) is labelled.

    It then refers to these images, and no two frames have the same position.
    """
    count = len(series.frames) // series.volumes
    labelled = {int(k) // count for k in np.flatnonzero(labels.any(axis=(0, 1)))}
    if series.volumes == 1 or len(labelled) != 1:
        return labels, series
    start = labelled.pop() * count
    frames = series.frames[start : start + count]
    grid = (*series.grid[:2], count)
    return labels[:, :, start : start + count], replace(series, frames=frames, grid=grid, volumes=1)


def kept_names(present: set[int], names: Mapping[str, int]) -> list[str]:
    """The names whose values are present, in the order of `names`."""
    unnamed = present - set(names.values())
    if unnamed:
        raise RequestError(f"the label contains the value {min(unnamed)}, which has no name")
    kept = [name for name, value in names.items() if value in present]
    for name in kept:
        if not label(name) or len(name) > TEXT_LENGTH:
            raise RequestError(
                f"structure {name!r:.80} has a name of {len(name)} characters; DICOM SEG can hold 1 to {TEXT_LENGTH}"
            )
    if not kept:
        raise RequestError("the label is empty; DICOM SEG needs at least one voxel")
    return kept


def _pictures(shown: Sequence[set[int]], numbers: Mapping[int, int], columns: int) -> NDArray[np.uint8]:
    """A picture of one row for each slice: in column n the segment number n + 1, if the slice shows that segment.

    `numbers` maps the values of the label to segment numbers.
    """
    pictures = np.zeros((len(shown), 1, columns), np.uint8)
    for picture, values in zip(pictures, shown, strict=True):
        for value in values:
            picture[0, numbers[value] - 1] = numbers[value]
    return pictures


def _put_pixels(
    segmentation: Segmentation, labels: NDArray[np.uint8], numbers: Mapping[int, int], series: Series, seg_type: str
) -> None:
    """Give each frame the mask of its segment on the slice that it refers to, or all that is on it, and its size."""
    segmentation.Columns, segmentation.Rows = series.grid[:2]
    index = series.index()
    origins = [_origin(group) for group in segmentation.PerFrameFunctionalGroupsSequence]
    slices = [index[source] for _, source in origins]
    if seg_type == LABELMAP:
        table = np.zeros(256, np.uint8)
        for value, number in numbers.items():
            table[value] = number
        to_label_map(segmentation, {k: table[labels[:, :, k].T] for k in slices}, slices)
        return
    values = {number: value for value, number in numbers.items()}
    masks = (np.equal(labels[:, :, k].T, values[segment]) for k, (segment, _) in zip(slices, origins, strict=True))
    data = b"".join(_packed(masks))
    segmentation.PixelData = data + b"\0" * (len(data) % 2)


def _origin(group: Dataset) -> tuple[int, tuple[str, int]]:
    """The number of a frame's segment, and the (SOP instance, frame number) that it refers to."""
    source = group.DerivationImageSequence[0].SourceImageSequence[0]
    number = int(source.get("ReferencedFrameNumber", 1))
    segment = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    return segment, (str(source.ReferencedSOPInstanceUID), number)


def _packed(masks: Iterator[NDArray[np.bool_]]) -> Iterator[bytes]:
    """The masks as bits, one after the other: eight at a time, because a single one may end within a byte."""
    while several := list(islice(masks, 8)):
        yield np.packbits(np.concatenate(several, axis=None), bitorder="little").tobytes()


def _segment(number: int, name: str, algorithm: str) -> SegmentDescription:
    category, kind = codes_of(name)
    identification = None
    if algorithm:
        family = Code("123109", "DCM", "Manual Processing")
        identification = AlgorithmIdentificationSequence(label(algorithm), family, version="1")
    return SegmentDescription(
        segment_number=number,
        segment_label=label(name),
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="SEMIAUTOMATIC" if algorithm else "MANUAL",
        algorithm_identification=identification,
        tracking_uid=highdicom.UID(),
        tracking_id=name,
    )


def _is_simple(series: Series) -> bool:
    """Whether highdicom can refer to the images: each is of one frame and has a position of its own."""
    positions = {frame.position for frame in series.frames}
    instances = {frame.instance for frame in series.frames}
    is_single = all("NumberOfFrames" not in item for item in series.headers if str(item.SOPInstanceUID) in instances)
    return series.positioned and is_single and len(positions) == len(instances) == len(series.frames)


def _sources(series: Series, columns: int) -> list[Dataset]:
    """The images in the order of slices, completed, with the size of `_pictures`."""
    by_instance = {str(header.SOPInstanceUID): header for header in series.headers}
    sources = [_source(by_instance[frame.instance], columns) for frame in series.frames]
    reference = frame_of_reference(series, sources[0])
    for source in sources:
        source.FrameOfReferenceUID = reference  # highdicom takes images of one only
        measures = _measures(series)
        if min(numbers(source, "PixelSpacing", 2) or (0.0,)) <= 0:
            source.PixelSpacing = measures.PixelSpacing
        if (number(source, "SliceThickness") or 0.0) <= 0:
            source.SliceThickness = measures.SliceThickness
    return sources


def _first_source(series: Series, columns: int) -> Dataset:
    """The image of the first slice, completed, with the size of `_pictures`."""
    header = next(header for header in series.headers if header.SOPInstanceUID == series.frames[0].instance)
    source = _source(header, columns)
    if series.positioned:
        source.FrameOfReferenceUID = frame_of_reference(series, source)
    return source


def _source(header: Dataset, columns: int) -> Dataset:
    # Copies of the elements: pydicom would write a new value into the header's own.
    source = Dataset({element.tag: copy(element) for element in header})
    to_utf_8(source)
    source.Rows, source.Columns = 1, columns
    for name in REQUIRED_ATTRIBUTES:
        if name not in source or not is_valid(name, source[name].value):
            setattr(source, name, "")
        elif source[name].VR == "PN":
            setattr(source, name, PersonName(one_text(source[name].value)))  # highdicom takes one name
    if source.get("LossyImageCompression") == "01":
        for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            setattr(source, name, source.get(name))
    return source


def frame_of_reference(series: Series, image: Dataset) -> str:
    """That of an image; one that is always the same for a series whose images do not name any."""
    return str(image.get("FrameOfReferenceUID") or generate_uid(entropy_srcs=[series.uid, "frame of reference"]))


def _measures(series: Series) -> Dataset:
    """The size of a pixel and the thickness of a slice; where the images do not say it, it is 1 mm."""
    column, row, depth = (float(step) for step in np.linalg.norm(series.affine[:3, :3], axis=0))
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [_decimal(row), _decimal(column)], _decimal(depth)
    return measures


def _put_origins(segmentation: Segmentation, images: Sequence[Dataset], series: Series) -> None:
    """References to the series' images, and their positions, instead of those of their stand-ins."""
    headers = {str(header.SOPInstanceUID): header for header in series.headers}
    origins = put_references(segmentation, images, series.frames, headers)
    if series.positioned:
        put_positions(segmentation, origins, _measures(series))
    else:
        remove_positions(segmentation)
    if not series.positioned or len({frame.position for frame in series.frames}) < len(series.frames):
        slices = series.index()
        order_by_slice(segmentation, [slices[frame.instance, frame.number] for frame in origins])


def is_valid(keyword: str, value: object) -> bool:
    """Whether highdicom takes a value of an image: it refuses dates, times and sexes that DICOM does not know."""
    try:
        if keyword.endswith("Date"):
            DA(value)
        elif keyword.endswith("Time"):
            TM(value)
    except (ValueError, TypeError):
        return False
    return keyword != "PatientSex" or value in ("M", "F", "O")


def _decimal(value: float) -> DSfloat:
    return DSfloat(value, auto_format=True)
