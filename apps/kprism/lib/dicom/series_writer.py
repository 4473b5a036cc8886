# SPDX-License-Identifier: Apache-2.0
"""Writing images without DICOM headers as DICOM series: volumes as CT or MR, pictures with any modality.

Identifiers are hashes of the content and the name, so the same image imported again is the same series. The voxels of
volumes keep their positions: rows and columns are the slices that the network sees (`MedicalImage.to_slices`);
position, orientation and spacing are those of the file. DICOM cannot express a sheared grid, which is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from lib.dicom.text import UTF_8, identifier, label, person_name
from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS, MedicalImage

IMPLEMENTATION = generate_uid(entropy_srcs=["K-Prism for MONAI Label"])

SOP_CLASSES = {
    "CT": UID("1.2.840.10008.5.1.4.1.1.2"),
    "MR": UID("1.2.840.10008.5.1.4.1.1.4"),
    "US": UID("1.2.840.10008.5.1.4.1.1.6.1"),
    "CR": UID("1.2.840.10008.5.1.4.1.1.1"),
    "ES": UID("1.2.840.10008.5.1.4.1.1.77.1.1"),  # VL endoscopic
    "GM": UID("1.2.840.10008.5.1.4.1.1.77.1.2"),  # VL microscopic
    "XC": UID("1.2.840.10008.5.1.4.1.1.77.1.4"),  # VL photographic
    "OP": UID("1.2.840.10008.5.1.4.1.1.77.1.5.1"),  # ophthalmic photography, 8 bit
    "OT": UID("1.2.840.10008.5.1.4.1.1.7"),  # secondary capture
}
"""Modalities that can be written, with the SOP class of each (DICOM PS3.4, annex B)."""

VOLUME_MODALITIES = ("CT", "MR")
COLOUR_MODALITIES = ("ES", "GM", "XC")
AIR_HOUNSFIELD = -500
"""Lower values are typical of Hounsfield units: those of air."""


@dataclass(frozen=True)
class Pixels:
    """Stored values (slice, row, column[, 3]); the image's values are stored * slope + intercept."""

    stored: NDArray[np.uint8 | np.uint16 | np.int16]
    slope: float = 1.0
    intercept: float = 0.0


def guess_modality(image: MedicalImage) -> str:
    """CT for volumes with values of air in Hounsfield units, MR for others; pictures are secondary captures."""
    if image.dimensions == 2 or image.is_colour:
        return "OT"
    return "CT" if float(image.values.min()) <= AIR_HOUNSFIELD else "MR"


def dicom_series(image: MedicalImage, name: str, modality: str) -> Iterator[FileDataset]:
    """The DICOM instances of an image, slice by slice; RequestError if the modality does not fit the image."""
    _check(image, modality)
    pixels = _pixels(image)
    shared = _series_header(image, name, modality, pixels)
    places = None if image.dimensions == 2 else _positions(image)
    series = str(shared.SeriesInstanceUID)
    for number, plane in enumerate(pixels.stored):
        instance = _instance(shared, generate_uid(entropy_srcs=[series, str(number)]), number + 1, plane)
        if places is not None:
            instance.ImagePositionPatient = [_decimal(x) for x in places[number]]
            instance.SliceLocation = _decimal(float(np.linalg.norm(places[number] - places[0])))
        yield instance


def _check(image: MedicalImage, modality: str) -> None:
    if modality not in SOP_CLASSES:
        raise RequestError(f"modality {modality!r} cannot be written; expected one of {', '.join(SOP_CLASSES)}")
    if image.is_colour and modality in (*VOLUME_MODALITIES, "CR"):
        raise RequestError(f"{image.name} is in colour; {modality} images are grey")
    if not image.is_colour and modality in COLOUR_MODALITIES:
        raise RequestError(f"{image.name} is grey; {modality} images are in colour (use OT)")
    if image.slices > 1 and modality not in VOLUME_MODALITIES:
        raise RequestError(
            f"{image.name} has {image.slices} slices; expected modality {' or '.join(VOLUME_MODALITIES)}"
        )
    directions = image.affine[:3, :3] / image.spacing
    if image.dimensions == 3 and np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise RequestError(f"{image.name} has axes that are not at right angles, which a DICOM series cannot express")


def _pixels(image: MedicalImage) -> Pixels:
    """Integers of up to 16 bits unchanged; all else scaled to 16 bits, with a relative error of at most 1/131,070."""
    if image.is_colour:
        planes = np.stack([image.to_slices(image.array[..., channel]) for channel in range(3)], axis=-1)
        return Pixels(np.ascontiguousarray(planes.astype(np.uint8)))
    values = image.to_slices(image.values)
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind in "bui" or bool((values == np.rint(values)).all()):
        if values.dtype.itemsize == 1 and low >= 0:
            return Pixels(values.astype(np.uint8))
        for kind in (np.int16, np.uint16):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return Pixels(values.astype(kind))
    slope = float(_decimal((high - low) / 65535))
    low = float(_decimal(low))
    return Pixels(np.clip(np.rint((values - low) / slope), 0, 65535).astype(np.uint16), slope, low)


def _positions(image: MedicalImage) -> NDArray[np.float64]:
    """The position of each slice's first pixel in millimetres, LPS."""
    corners = [image.orientation.points_to_volume((number, 0, 0)) for number in range(image.slices)]
    affine = LPS_TO_RAS @ image.affine
    return np.asarray([(affine @ [*corner, 1.0])[:3] for corner in corners])


def _axis(image: MedicalImage, step: tuple[int, int, int]) -> NDArray[np.float64]:
    """The millimetres (LPS) of one step along (slice, row, column)."""
    start, end = (image.orientation.points_to_volume(point) for point in ((0, 0, 0), step))
    return np.asarray((LPS_TO_RAS @ image.affine)[:3, :3] @ (end - start))


def _series_header(image: MedicalImage, name: str, modality: str, pixels: Pixels) -> Dataset:
    """The attributes that all instances of the series share."""
    header = Dataset()
    roots = [generate_uid(entropy_srcs=[image.digest, name, modality, level]) for level in ("study", "series", "frame")]
    header.StudyInstanceUID, header.SeriesInstanceUID = roots[:2]
    header.SOPClassUID = SOP_CLASSES[modality]
    header.Modality = modality
    header.SpecificCharacterSet = UTF_8
    header.PatientName, header.PatientID = person_name(name), identifier(name)
    header.StudyDescription = header.SeriesDescription = label(name)
    for empty in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate"):
        setattr(header, empty, "")
    header.PatientSex = header.StudyID = header.Laterality = header.PatientOrientation = ""
    header.Manufacturer = "K-Prism import"
    header.SeriesNumber = 1
    header.ImageType = ["DERIVED", "SECONDARY"] + (["AXIAL"] if modality == "CT" else [])
    header.ConversionType = "WSD"
    _describe_pixels(header, pixels)
    if image.dimensions == 3:
        header.FrameOfReferenceUID = roots[2]
        header.PositionReferenceIndicator = ""
        slice_step, row_step, column_step = (_axis(image, step) for step in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
        along, down = (step / np.linalg.norm(step) for step in (column_step, row_step))
        header.ImageOrientationPatient = [_decimal(x) for x in (*along, *down)]
        header.PixelSpacing = [_decimal(float(np.linalg.norm(step))) for step in (row_step, column_step)]
        header.SliceThickness = header.SpacingBetweenSlices = _decimal(float(np.linalg.norm(slice_step)))
    if modality == "MR":
        header.ScanningSequence, header.SequenceVariant, header.ScanOptions = "RM", "NONE", ""
        header.MRAcquisitionType, header.EchoTime, header.EchoTrainLength, header.RepetitionTime = "", "", "", ""
    if modality == "CT":
        header.KVP, header.AcquisitionNumber = "", ""
    return header


def _describe_pixels(header: Dataset, pixels: Pixels) -> None:
    stored = pixels.stored
    bits = stored.dtype.itemsize * 8
    header.Rows, header.Columns = stored.shape[1:3]
    header.BitsAllocated = header.BitsStored = bits
    header.HighBit = bits - 1
    header.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 4:
        header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
        return
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.RescaleSlope, header.RescaleIntercept, header.RescaleType = (
        _decimal(pixels.slope),
        _decimal(pixels.intercept),
        "HU" if header.Modality == "CT" else "US",
    )
    low, high = np.percentile(stored, (0.5, 99.5)) * pixels.slope + pixels.intercept
    header.WindowCenter, header.WindowWidth = _decimal((low + high) / 2), _decimal(max(high - low, pixels.slope))


def _instance(shared: Dataset, uid: UID, number: int, plane: NDArray[np.generic]) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = shared.SOPClassUID
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION
    instance = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    instance.update(copy.deepcopy(shared))  # else all instances would share the elements
    instance.is_little_endian, instance.is_implicit_VR = True, False
    instance.SOPInstanceUID = uid
    instance.InstanceNumber = number
    data = np.ascontiguousarray(plane).tobytes()
    instance.PixelData = data + b"\0" * (len(data) % 2)
    instance["PixelData"].VR = "OB" if plane.dtype.itemsize == 1 else "OW"
    return instance


def _decimal(value: float) -> str:
    """A number as a decimal string of at most 16 characters (DICOM's VR DS)."""
    for digits in range(15, 0, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} cannot be written as a DICOM decimal string")
