# SPDX-License-Identifier: Apache-2.0
"""The pixels of one DICOM instance, decoded and rescaled.

SimpleITK (GDCM) decodes most kinds of images, from a file, and OpenJPEG those in HTJ2K. Grey images that are not
compressed, which most are, are read with NumPy instead, in a fifth of the time and with the same values.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from lib.dicom import htj2k
from lib.dicom.frames import frame_count, functional, number
from lib.dicom.series import decode_file
from lib.dicom.web import as_bytes
from lib.errors import RequestError

PLAIN_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
NATIVE_SYNTAXES = (*PLAIN_SYNTAXES, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
"""Those without compression of the pixels."""


def decode(content: bytes, instance: str) -> NDArray[Any]:
    """The planes (frame, row, column) or (frame, row, column, 3) of a DICOM file, rescaled.

    RequestError names the image if it is not readable, and the transfer syntax if that is the reason.
    """
    try:
        dataset = dcmread(io.BytesIO(content))
        _check(dataset)
        planes = _plain(dataset)
    except (InvalidDicomError, OSError, ValueError, TypeError, AttributeError, KeyError, EOFError) as error:
        raise RequestError(f"image {instance} is not a readable DICOM file: {error}") from error
    if planes is not None:
        return planes
    if dataset.file_meta.get("TransferSyntaxUID") in htj2k.NAMES:
        return _of_htj2k(dataset, instance)
    if rescales := _of_frames(dataset):
        planes = _by_gdcm(as_bytes(_without_rescale(dataset)), instance)
        return np.stack(
            [plane.astype(np.float64) * slope + low for plane, (slope, low) in zip(planes, rescales, strict=True)]
        )
    return _by_gdcm(content, instance)


def _by_gdcm(content: bytes, instance: str) -> NDArray[Any]:
    with tempfile.TemporaryDirectory(prefix="kprism-dicom-") as folder:
        path = Path(folder) / f"{instance}.dcm"
        path.write_bytes(content)
        return decode_file(path)


def _of_frames(dataset: Dataset) -> list[tuple[float, float]]:
    """(slope, intercept) of each frame if they differ, for GDCM takes those of the first frame for all; else empty."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return []
    rescales = [rescale_of(dataset, frame) for frame in range(frame_count(dataset))]
    return rescales if len(set(rescales)) > 1 else []


def _without_rescale(dataset: Dataset) -> Dataset:
    """The image with its stored values; changes `dataset`."""
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or []), *dataset.PerFrameFunctionalGroupsSequence]
    for item in (dataset, *groups):
        for name in ("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept", "RescaleType"):
            item.pop(name, None)
    return dataset


def _check(dataset: Dataset) -> None:
    """ValueError if there are fewer bytes than pixels: GDCM would fill the image with whatever is in the memory."""
    if "PixelData" not in dataset:
        kinds = [name for name in ("FloatPixelData", "DoubleFloatPixelData") if name in dataset]
        raise ValueError(f"it has no pixels that are whole numbers ({', '.join(kinds) or 'no PixelData'})")
    if int(dataset.BitsAllocated) not in (1, 8, 16, 32):
        raise ValueError(f"its pixels have {dataset.BitsAllocated} bits; expected 1, 8, 16 or 32")
    if dataset.file_meta.get("TransferSyntaxUID") not in NATIVE_SYNTAXES:
        return
    samples = int(dataset.get("SamplesPerPixel") or 1)
    pixels = frame_count(dataset) * int(dataset.Rows) * int(dataset.Columns)
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        samples = 2  # two pixels have their colour in common
    needed = (pixels * samples * int(dataset.BitsAllocated) + 7) // 8
    found = len(dataset.PixelData or b"")
    if found < needed:
        raise ValueError(f"it has {found} bytes of pixels, its header says {needed}")


def _of_htj2k(dataset: Dataset, instance: str) -> NDArray[Any]:
    """The planes of an image that is compressed with HTJ2K, rescaled."""
    name = htj2k.NAMES[dataset.file_meta.TransferSyntaxUID]
    try:
        planes = htj2k.stored_values(dataset)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise RequestError(f"the pixels of {instance} ({name}) cannot be decoded: {error}") from error
    kind = str(dataset.get("PhotometricInterpretation"))
    if planes.ndim == 4 and kind in ("RGB", "YBR_RCT", "YBR_ICT"):  # the codec has made RGB of the last two
        return planes
    if planes.ndim != 3 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise RequestError(f"the pixels of {instance} ({name}) cannot be decoded: {kind} is not supported")
    stored = int(dataset.get("BitsStored") or planes.dtype.itemsize * 8)
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if planes.dtype.kind == "i" else (0, 2**stored - 1)
    if kind == "MONOCHROME1":
        planes = low + high - planes.astype(np.int32)
    rescaled = [_rescaled(plane, *rescale_of(dataset, number), (low, high)) for number, plane in enumerate(planes)]
    return np.stack(rescaled)


def rescale_of(dataset: Dataset, frame: int) -> tuple[float, float]:
    """(slope, intercept) of a frame counted from 0; a slope of 0, which would make every value the same, is none."""
    source = functional(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    return (1.0, 0.0) if slope == 0 else (1.0 if slope is None else slope, intercept or 0.0)


def _plain(dataset: Dataset) -> NDArray[Any] | None:
    """The planes of a grey image that is not compressed; None for all others."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.get("BitsStored") or 0)
    is_plain = (
        dataset.file_meta.get("TransferSyntaxUID") in PLAIN_SYNTAXES
        and allocated in (8, 16)
        and 0 < stored <= allocated
        and int(dataset.get("SamplesPerPixel") or 1) == 1
        and dataset.get("PhotometricInterpretation") == "MONOCHROME2"
        and "SharedFunctionalGroupsSequence" not in dataset
        and "PerFrameFunctionalGroupsSequence" not in dataset
    )
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    content: bytes = dataset.get("PixelData") or b""
    count = shape[0] * shape[1] * shape[2]
    if not is_plain or not 0 < count * allocated // 8 <= len(content):
        return None
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    values: NDArray[Any] = np.frombuffer(content, f"<{'i' if signed else 'u'}{allocated // 8}", count).reshape(shape)
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    shift = int(dataset.get("HighBit", stored - 1)) + 1 - stored
    if 0 < shift < allocated and not (values & ((1 << shift) - 1)).any():
        values = values >> shift  # the values are in the upper bits; often only HighBit is wrong
    if stored < allocated and (values.min() < low or values.max() > high):
        return None  # something else is in the bits above those of the values
    return _rescaled(values, *rescale_of(dataset, 0), (low, high))


def _rescaled(values: NDArray[Any], factor: float, offset: float, limits: tuple[int, int]) -> NDArray[Any]:
    """Values times factor plus offset: int32 if both are whole numbers and the result fits, else float64."""
    if (factor, offset) == (1, 0):
        return values
    is_whole = factor.is_integer() and offset.is_integer()
    if is_whole and max(abs(limit * factor) + abs(offset) for limit in limits) < 2**31:
        return values.astype(np.int32) * np.int32(factor) + np.int32(offset)
    return values.astype(np.float64) * factor + offset
