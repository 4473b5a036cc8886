# SPDX-License-Identifier: Apache-2.0
"""RT structure sets as other tools write them: contours in pixels of a slice, and what they are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from lib.dicom.series import Series

RTSTRUCT_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

Corners = Iterable[tuple[float, float]]
Drawn = tuple[Corners, float] | tuple[Corners, float, str]


def box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    """The corners of a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def foreign(series: Series, rois: dict[str, list[Drawn]], *, references: bool = False) -> Dataset:
    """A structure set of contours: corners (column, row), the place along the slices, and the type of contour.

    Without `references` only the frame of reference says what it belongs to.
    """
    structures = _empty(series)
    names, contours = [], []
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine
    for number, (name, drawn) in enumerate(rois.items(), 1):
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "MANUAL"
        roi.ReferencedFrameOfReferenceUID = series.headers[0].FrameOfReferenceUID
        item.ReferencedROINumber = number
        items = []
        for corners, k, *kind in drawn:
            contour = Dataset()
            contour.ContourGeometricType = kind[0] if kind else "CLOSED_PLANAR"
            points = np.array([(column, row, k, 1) for column, row in corners]) @ affine.T
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.4f}" for value in points[:, :3].ravel()]
            if references:
                image = Dataset()
                image.ReferencedSOPClassUID = series.headers[0].SOPClassUID
                image.ReferencedSOPInstanceUID = series.frames[round(k)].instance
                contour.ContourImageSequence = Sequence([image])
            items.append(contour)
        if items:
            item.ContourSequence = Sequence(items)
        names.append(roi)
        contours.append(item)
    structures.StructureSetROISequence, structures.ROIContourSequence = Sequence(names), Sequence(contours)
    return structures


def _empty(series: Series) -> Dataset:
    """A structure set that can be stored, in the study of the images."""
    structures, header = Dataset(), series.headers[0]
    structures.SpecificCharacterSet = "ISO_IR 192"
    structures.SOPClassUID, structures.SOPInstanceUID = RTSTRUCT_SOP_CLASS, generate_uid()
    structures.Modality, structures.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    structures.StudyInstanceUID, structures.PatientID = header.StudyInstanceUID, header.PatientID
    structures.PatientName = str(header.PatientName)
    structures.StructureSetLabel, structures.StructureSetDate = "plan", "20240102"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTSTRUCT_SOP_CLASS, structures.SOPInstanceUID
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    structures.file_meta, structures.preamble = meta, b"\0" * 128
    structures.is_little_endian, structures.is_implicit_VR = True, True
    return structures
