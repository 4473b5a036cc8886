# SPDX-License-Identifier: Apache-2.0
"""Writing a label map on the grid of a series as an RT Structure Set (PS3.3, A.19), read back voxel by voxel.

Contours run along the edges of the pixels of each image, so whoever counts the centres of pixels inside gets the mask,
and areas are those of the pixels. Libraries for it trace through the centres of pixels, which loses their border.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian, generate_uid

from lib.dicom.contours import outlines
from lib.dicom.frames import Frame
from lib.dicom.patient_context import patient_context
from lib.dicom.seg_writer import MANUFACTURER, frame_of_reference, kept_names, labelled_volume
from lib.dicom.segments import codes_of, colour_of
from lib.dicom.series import Series
from lib.dicom.text import TEXT_LENGTH, label
from lib.errors import RequestError
from lib.imaging.label_maps import values_by_plane
from lib.imaging.medical_image import LPS_TO_RAS, describe

RTSTRUCT_SOP_CLASS = UID("1.2.840.10008.5.1.4.1.1.481.3")
"""RT Structure Set Storage."""

STUDY_SOP_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management: retired, and still how structure sets refer to a study."""

SERIES_NUMBER = 301
DIGITS = 3
"""Digits of a coordinate behind the first one of the pixel spacing."""

CONTOUR_DATA = Tag("ContourData")
DS_LENGTH = 16
"""Characters that a decimal string may have (PS3.5, 6.2)."""


def write_rtstruct(labels: NDArray[np.uint8], names: Mapping[str, int], series: Series, description: str) -> Dataset:
    """A structure set of `labels` (column, row, slice) with the values `names`; ROIs are numbered in their order.

    Names without a voxel are left out. RequestError if no voxel is labelled, a value has no name, the labels are not on
    the series' grid, or its images have no positions.
    """
    if labels.shape != series.grid:
        raise RequestError(
            f"the label has {describe(labels.shape)} voxels, series {series.uid} {describe(series.grid)}"
        )
    if not series.positioned or any(frame.position is None for frame in series.frames):
        raise RequestError(
            f"the images of series {series.uid} have no position in the patient, which RTSTRUCT needs; "
            "expected the format seg or nifti"
        )
    labels, series = labelled_volume(labels, series)
    shown = values_by_plane(labels)
    kept = kept_names(set().union(*shown), names)
    structures = patient_context(series.headers[0])
    _add_identity(structures, description)
    place = frame_of_reference(series, series.headers[0])
    images = _image_references(series)
    structures.FrameOfReferenceUID = place
    structures.PositionReferenceIndicator = ""
    structures.ReferencedFrameOfReferenceSequence = _references(place, series, list(images.values()))
    rois, contours, observations = [], [], []
    for number, name in enumerate(kept, 1):
        slices = [k for k, values in enumerate(shown) if names[name] in values]
        rois.append(_roi(number, name, place))
        contours.append(_contours(number, name, labels, names[name], slices, series, images))
        observations.append(_observation(number, name))
    structures.StructureSetROISequence = Sequence(rois)
    structures.ROIContourSequence = Sequence(contours)
    structures.RTROIObservationsSequence = Sequence(observations)
    return structures


def _add_identity(structures: Dataset, description: str) -> None:
    """What the object is, who made it and when."""
    now = datetime.now()
    date, clock = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    structures.SOPClassUID, structures.SOPInstanceUID = RTSTRUCT_SOP_CLASS, generate_uid()
    structures.Modality, structures.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    structures.SeriesNumber, structures.InstanceNumber = SERIES_NUMBER, 1
    structures.SeriesDescription, structures.OperatorsName = label(description), ""
    structures.Manufacturer, structures.ManufacturerModelName = MANUFACTURER, "K-Prism for MONAI Label"
    structures.SoftwareVersions = "1"
    structures.StructureSetLabel, structures.StructureSetName = MANUFACTURER, label(description)
    structures.StructureSetDate, structures.StructureSetTime = date, clock
    structures.SeriesDate, structures.SeriesTime = date, clock
    structures.InstanceCreationDate, structures.InstanceCreationTime = date, clock
    structures.ApprovalStatus = "UNAPPROVED"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTSTRUCT_SOP_CLASS, structures.SOPInstanceUID
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, PYDICOM_IMPLEMENTATION_UID
    structures.file_meta, structures.preamble = meta, b"\0" * 128
    structures.is_little_endian, structures.is_implicit_VR = True, False


def _image_references(series: Series) -> dict[Frame, Dataset]:
    """For each frame a reference to its image, and to the frame of one that has several."""
    sop_class = str(series.headers[0].SOPClassUID)
    is_multi_frame = len({frame.instance for frame in series.frames}) < len(series.frames)
    references = {}
    for frame in series.frames:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, frame.instance
        if is_multi_frame:
            image.ReferencedFrameNumber = frame.number
        references[frame] = image
    return references


def _references(frame: str, series: Series, images: list[Dataset]) -> Sequence:
    """The frame of reference with its study, series and images."""
    whole, study, place = Dataset(), Dataset(), Dataset()
    whole.SeriesInstanceUID = series.uid
    whole.ContourImageSequence = Sequence(images)
    study.ReferencedSOPClassUID = STUDY_SOP_CLASS
    study.ReferencedSOPInstanceUID = str(series.headers[0].StudyInstanceUID)
    study.RTReferencedSeriesSequence = Sequence([whole])
    place.FrameOfReferenceUID = frame
    place.RTReferencedStudySequence = Sequence([study])
    return Sequence([place])


def _roi(number: int, name: str, frame: str) -> Dataset:
    roi = Dataset()
    roi.ROINumber, roi.ROIName = number, label(name)
    if roi.ROIName != name:
        roi.ROIDescription = name[:TEXT_LENGTH]
    roi.ReferencedFrameOfReferenceUID = frame
    roi.ROIGenerationAlgorithm = "SEMIAUTOMATIC"
    return roi


def _observation(number: int, name: str) -> Dataset:
    observation, code = Dataset(), Dataset()
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = observation.ROIInterpreter = ""
    _, kind = codes_of(name)
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
        kind.value,
        kind.scheme_designator,
        label(kind.meaning),
    )
    observation.RTROIIdentificationCodeSequence = Sequence([code])
    return observation


def _contours(
    number: int,
    name: str,
    labels: NDArray[np.uint8],
    value: int,
    slices: list[int],
    series: Series,
    images: Mapping[Frame, Dataset],
) -> Dataset:
    """The contours of a value on the slices that show it."""
    contours: list[Dataset] = []
    for k in slices:
        for points in outlines((labels[:, :, k] == value).T):
            contour = Dataset()
            contour.ContourImageSequence = Sequence([images[series.frames[k]]])
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourNumber = len(contours) + 1
            contour[CONTOUR_DATA] = _data_element(_places(points, series, k), _digits(series))
            contours.append(contour)
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(colour_of(name))
    item.ContourSequence = Sequence(contours)
    return item


def _places(points: NDArray[np.float64], series: Series, k: int) -> NDArray[np.float64]:
    """Where points (column, row) of an image are in the patient (LPS, mm)."""
    axes = (LPS_TO_RAS @ series.affine)[:3, :2]
    places: NDArray[np.float64] = points @ axes.T + np.array(series.frames[k].position)
    return places


def _digits(series: Series) -> int:
    """Digits behind the point of millimetres, such that rounding is less than a thousandth of a pixel."""
    spacing = float(np.linalg.norm(series.affine[:3, :2], axis=0).min())
    return max(DIGITS - math.floor(math.log10(spacing)), 0)


def _data_element(places: NDArray[np.float64], digits: int) -> RawDataElement:
    """Coordinates as they lie in a file: a number object for each of them would take seconds."""
    text = "\\".join(f"{value:.{digits}f}"[:DS_LENGTH] for value in places.ravel().tolist())
    data = (text + " " * (len(text) % 2)).encode()
    return RawDataElement(CONTOUR_DATA, "DS", len(data), data, 0, False, True)
