# SPDX-License-Identifier: Apache-2.0
"""The pixels of one DICOM instance, decoded and rescaled.

SimpleITK (GDCM) decodes most kinds of images, from a file, and OpenJPEG those in HTJ2K. Grey images that are not
compressed, which most are, are read with NumPy instead, in a fifth of the time and with the same values. What GDCM
does not do for every image, such as to invert or to rescale it, is done here with the values as they are stored.
"""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
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
from lib.dicom.jpeg_colours import true_colours
from lib.dicom.palette import COLOURS, coloured
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
    if _is_beyond_gdcm(dataset):
        return _finished(dataset, _by_gdcm(as_bytes(_as_stored(dataset)), instance), instance)
    try:
        return _by_gdcm(content, instance)
    except RequestError:  # it may be something beside the pixels that GDCM cannot read, such as a position
        with suppress(RequestError):
            return _finished(dataset, _by_gdcm(as_bytes(_as_stored(dataset)), instance), instance)
        raise


def stored_values(dataset: Dataset, instance: str) -> NDArray[Any]:
    """The values (frame, row, column[, 3]) of an image as they are stored; RequestError if they cannot be decoded."""
    _check(dataset)
    if dataset.file_meta.get("TransferSyntaxUID") in htj2k.NAMES:
        return htj2k.stored_values(dataset)
    return _by_gdcm(as_bytes(_as_stored(dataset)), instance)


def _by_gdcm(content: bytes, instance: str) -> NDArray[Any]:
    with tempfile.TemporaryDirectory(prefix="kprism-dicom-") as folder:
        path = Path(folder) / f"{instance}.dcm"
        path.write_bytes(content)
        return decode_file(path)


def _is_beyond_gdcm(dataset: Dataset) -> bool:
    """Whether GDCM reads the values well, but makes something else of them, or refuses to.

    It inverts no values with a sign, knows few kinds of palettes and believes wrong headers of JPEG. The frames of an
    enhanced image it rescales all alike, or not at all if it is no CT, MR or PET.
    """
    kind = str(dataset.get("PhotometricInterpretation"))
    if kind in ("MONOCHROME1", "PALETTE COLOR") or true_colours(dataset) is not None:
        return True
    has_groups = "SharedFunctionalGroupsSequence" in dataset or "PerFrameFunctionalGroupsSequence" in dataset
    return has_groups and any(rescale_of(dataset, frame) != (1, 0) for frame in range(frame_count(dataset)))


def _as_stored(dataset: Dataset) -> Dataset:
    """The image as one that GDCM decodes to the stored values: nothing but its pixels, and how they are stored."""
    plain = Dataset({element.tag: element for element in dataset if element.tag.group in PIXEL_GROUPS})
    for name in MEANING:
        plain.pop(name, None)
    for name in IDENTITY:
        if name in dataset:
            plain[name] = dataset[name]
    plain.file_meta, plain.preamble = dataset.file_meta, b"\0" * 128
    plain.is_little_endian, plain.is_implicit_VR = dataset.is_little_endian, dataset.is_implicit_VR
    grey = str(dataset.get("PhotometricInterpretation")) in ("MONOCHROME1", "PALETTE COLOR")
    kind = "MONOCHROME2" if grey else true_colours(dataset)
    if kind is not None:
        plain.pop("PhotometricInterpretation", None)  # else the new value would be written into the image's own element
        plain.PhotometricInterpretation = kind
    return plain


PIXEL_GROUPS = (0x0028, 0x7FE0)
IDENTITY = ("SOPClassUID", "SOPInstanceUID")
MEANING = (
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PixelSpacing"),
    *(f"{colour}PaletteColorLookupTable{part}" for colour in COLOURS for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in COLOURS),
)
"""Attributes beside the pixels that say what stored values mean."""


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
    if planes.ndim != 3 or kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"):
        raise RequestError(f"the pixels of {instance} ({name}) cannot be decoded: {kind} is not supported")
    return _finished(dataset, planes, instance)


def _finished(dataset: Dataset, planes: NDArray[Any], instance: str) -> NDArray[Any]:
    """What the stored values of an image mean: colours, or numbers after inversion and rescaling."""
    kind = str(dataset.get("PhotometricInterpretation"))
    if kind == "PALETTE COLOR":
        try:
            return coloured(planes, dataset)
        except (ValueError, AttributeError, TypeError, NotImplementedError) as error:
            raise RequestError(f"the colours of {instance} cannot be read: {error}") from error
    if planes.ndim == 4:
        return planes
    limits = _limits(int(dataset.get("BitsStored") or planes.dtype.itemsize * 8), planes.dtype.kind == "i")
    if kind == "MONOCHROME1":
        planes = _inverted(planes, limits)
    rescales = (rescale_of(dataset, frame) for frame in range(len(planes)))
    return np.stack([_rescaled(plane, *rescale, limits) for plane, rescale in zip(planes, rescales, strict=True)])


def _limits(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest value of so many bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _inverted(values: NDArray[Any], limits: tuple[int, int]) -> NDArray[Any]:
    """Values of which low ones are white, such that high ones are, in the same limits."""
    wide = np.int32 if values.dtype.itemsize < 4 else np.int64
    inverted: NDArray[Any] = np.subtract(sum(limits), values.astype(wide))
    return inverted


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
        and dataset.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
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
    low, high = _limits(stored, signed)
    shift = int(dataset.get("HighBit", stored - 1)) + 1 - stored
    if 0 < shift < allocated and not (values & ((1 << shift) - 1)).any():
        values = values >> shift  # the values are in the upper bits; often only HighBit is wrong
    if stored < allocated and (values.min() < low or values.max() > high):
        return None  # something else is in the bits above those of the values
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = _inverted(values, (low, high))
    return _rescaled(values, *rescale_of(dataset, 0), (low, high))


def _rescaled(values: NDArray[Any], factor: float, offset: float, limits: tuple[int, int]) -> NDArray[Any]:
    """Values times factor plus offset: int32 if both are whole numbers and the result fits, else float64."""
    if (factor, offset) == (1, 0):
        return values
    is_whole = factor.is_integer() and offset.is_integer()
    if is_whole and max(abs(limit * factor) + abs(offset) for limit in limits) < 2**31:
        return values.astype(np.int32) * np.int32(factor) + np.int32(offset)
    return values.astype(np.float64) * factor + offset
