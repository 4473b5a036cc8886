# SPDX-License-Identifier: Apache-2.0
"""Folders of DICOM files as hospitals have them, written with pydicom and highdicom, of a body with a bright ball."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pillow_jpls  # noqa: F401 - registers the format
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

SHAPE = (64, 56, 10)
CENTRE, RADIUS = (36, 24, 5), 9.0
SPACING = (1.0, 1.0, 2.5)
CT = "1.2.840.10008.5.1.4.1.1.2"


def ball() -> np.ndarray:
    """The ball (column, row, slice), off the middle on every axis."""
    grid = np.indices(SHAPE).astype(float)
    return sum(((grid[axis] - CENTRE[axis]) * SPACING[axis]) ** 2 for axis in range(3)) <= RADIUS**2


def body(seed: int = 0) -> np.ndarray:
    """CT numbers (column, row, slice): air, a body and the ball; every voxel with noise of its own."""
    noise = np.random.default_rng(seed).integers(-8, 8, SHAPE)
    inside = np.zeros(SHAPE, bool)
    inside[6:58, 5:51] = True
    return (np.where(ball(), 300, np.where(inside, 40, -1000)) + noise).astype(np.int16)


def series(name: str, voxels: np.ndarray | None = None, **more: Any) -> list[FileDataset]:
    """Single-frame CT images of a patient `name`; `more` are further attributes, or others."""
    voxels = body() if voxels is None else voxels
    shared = Dataset()
    shared.SOPClassUID, shared.Modality = CT, "CT"
    shared.StudyInstanceUID, shared.SeriesInstanceUID = generate_uid(), generate_uid()
    shared.FrameOfReferenceUID = generate_uid()
    shared.PatientName, shared.PatientID, shared.PatientBirthDate, shared.PatientSex = f"Test^{name}", name, "", ""
    shared.StudyDate, shared.StudyTime, shared.StudyID, shared.AccessionNumber = "20240102", "120000", "1", ""
    shared.ReferringPhysicianName, shared.Manufacturer = "", "synthetic"
    shared.StudyDescription, shared.SeriesDescription, shared.SeriesNumber = "Thorax", f"axial {name}", 3
    shared.PixelSpacing, shared.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    shared.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.SamplesPerPixel, shared.PhotometricInterpretation = 1, "MONOCHROME2"
    shared.BitsAllocated, shared.BitsStored, shared.HighBit, shared.PixelRepresentation = 16, 16, 15, 1
    for key, value in more.items():
        setattr(shared, key, value)
    images = []
    for k in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, shared.SOPClassUID
        image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.update(copy.deepcopy(shared))
        image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
        image.InstanceNumber = k + 1
        image.ImagePositionPatient = [-30.0, -20.0, 5.0 + SPACING[2] * k]
        image.Rows, image.Columns = voxels.shape[1], voxels.shape[0]
        image.PixelData = np.ascontiguousarray(voxels[:, :, k].T).tobytes()
        image["PixelData"].VR = "OW"
        image.is_little_endian, image.is_implicit_VR = True, False
        images.append(image)
    return images


def again(images: Sequence[Dataset], voxels: np.ndarray | None = None) -> list[FileDataset]:
    """The images anew, with the same identifiers."""
    fresh = series(str(images[0].PatientID), voxels)
    for image, earlier in zip(fresh, images, strict=True):
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
            setattr(image, name, earlier[name].value)
        image.file_meta.MediaStorageSOPInstanceUID = earlier.SOPInstanceUID
    return fresh


def _jpeg_ls(plane: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(plane).save(stream, "JPEG-LS")
    return stream.getvalue()


def _encoded(images: list[FileDataset], syntax: UID, encode: Callable[[np.ndarray], bytes]) -> list[FileDataset]:
    for image in images:
        image.PixelData = encapsulate([encode(np.ascontiguousarray(image.pixel_array))])
        image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
        image.file_meta.TransferSyntaxUID = syntax
    return images


def compressed(images: list[FileDataset], syntax: UID) -> list[FileDataset]:
    """The images in a transfer syntax, without loss."""
    if syntax == RLELossless:
        for image in images:
            image.compress(RLELossless)
    elif syntax == JPEG2000Lossless:
        return _encoded(images, syntax, lambda plane: encode_array(plane, photometric_interpretation=2))
    elif syntax == JPEGLSLossless:
        return _encoded(images, syntax, lambda plane: _jpeg_ls(plane.astype(np.uint16)))
    else:
        for image in images:
            image.file_meta.TransferSyntaxUID = syntax
            image.is_implicit_VR = syntax == ImplicitVRLittleEndian
    return images


def write(
    images: Sequence[Dataset], folder: Path, name: Callable[[int], str] = lambda number: f"IM{number:06}"
) -> None:
    """Write images as files of the names that `name` gives their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save_as(folder / name(number), write_like_original=False)


def write_bare(images: Sequence[Dataset], folder: Path) -> None:
    """Write data sets alone, without preamble and file meta information, as some devices do."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        bare = Dataset()
        bare.update(image)
        bare.is_little_endian, bare.is_implicit_VR = True, True
        bare.save_as(folder / f"{number:03}.dcm", write_like_original=True)


def write_without_syntax(images: Sequence[Dataset], folder: Path) -> None:
    """Write images whose header does not say how they are encoded."""
    folder.mkdir()
    for number, image in enumerate(images):
        del image.file_meta.TransferSyntaxUID
        image.save_as(folder / f"{number:03}.dcm", write_like_original=True)


def state_in(images: Sequence[Dataset]) -> FileDataset:
    """A presentation state that lies in the series of its images, which it should not."""
    state = report(images)
    state.SeriesInstanceUID, state.Modality = images[0].SeriesInstanceUID, "PR"
    return state


def write_disc(images: Sequence[Dataset], folder: Path) -> None:
    """Write images as a disc has them: a DICOMDIR, and files with short names in folders."""
    files = FileSet()
    for image in images:
        files.add(image)
    files.write(folder)


def segmentation(images: Sequence[Dataset], masks: dict[str, np.ndarray]) -> Dataset:
    """A SEG of another tool; masks (column, row, slice) of the images in their order."""
    segments = [
        highdicom.seg.SegmentDescription(
            number,
            name,
            Code("123037004", "SCT", "Anatomical Structure"),
            Code("10200004", "SCT", "Liver"),
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(masks, 1)
    ]
    pixels = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1)
    return highdicom.seg.Segmentation(
        list(images),
        pixels,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="other tool",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    )


def report(images: Sequence[Dataset]) -> FileDataset:
    """A structured report in the study of the images, which holds no image."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.88.11"
    document = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    document.SOPClassUID, document.Modality = meta.MediaStorageSOPClassUID, "SR"
    document.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    document.StudyInstanceUID, document.SeriesInstanceUID = images[0].StudyInstanceUID, generate_uid()
    document.PatientID, document.PatientName = images[0].PatientID, images[0].PatientName
    document.ContentSequence = DicomSequence()
    document.is_little_endian, document.is_implicit_VR = True, False
    return document


def hashed(number: int) -> str:
    """Names as a PACS exports them: without a suffix, in no order."""
    return f"{(number * 7919) % 104729:08X}"


DEFLATED = DeflatedExplicitVRLittleEndian


def numbered_by(images: Sequence[Dataset]) -> Callable[[int], str]:
    """Files named by their SOP instance, without a suffix."""
    return lambda number: str(images[number].SOPInstanceUID)
