# SPDX-License-Identifier: Apache-2.0
"""What stored values mean: inversion, scales in functional groups and palettes, whatever the class and the syntax."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    EnhancedUSVolumeStorage,
    EnhancedXAImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    OphthalmicTomographyImageStorage,
    RLELossless,
)

from lib.dicom.pixels import decode
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from tests.unit import dicom_files

SHAPE = (10, 12)  # rows, columns


def image_of(values: NDArray[Any], bits: int, **changes: Any) -> Dataset:
    """An image of stored values (row, column), without a scale."""
    image = copy.deepcopy(dicom_files.volume("MR", (12, 10, 1))[0])
    for name in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        image.pop(name, None)
    image.BitsAllocated, image.BitsStored, image.HighBit = values.dtype.itemsize * 8, bits, bits - 1
    image.PixelRepresentation = int(values.dtype.kind == "i")
    image.PixelData = values.tobytes()
    for name, value in changes.items():
        setattr(image, name, value)
    return image


def written(image: Dataset, syntax: str) -> bytes:
    """The file in a transfer syntax."""
    if syntax == RLELossless:
        image.compress(RLELossless)
    elif syntax == ExplicitVRBigEndian:
        wide = f"{'i' if image.PixelRepresentation else 'u'}2"
        image.PixelData = np.frombuffer(image.PixelData, f"<{wide}").astype(f">{wide}").tobytes()
        image.is_little_endian = False
    image.file_meta.TransferSyntaxUID = syntax
    return as_bytes(image)


SYNTAXES = (ExplicitVRLittleEndian, RLELossless, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("bits", "signed"), [(12, False), (12, True), (16, True), (10, False), (16, False)])
@pytest.mark.parametrize("scale", [None, ("1", "-1024"), ("0.5", "3")])
def test_inverted_values_of_any_kind(syntax: str, bits: int, signed: bool, scale: tuple[str, str] | None) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.random.default_rng(0).integers(low, high, SHAPE, endpoint=True)
    image = image_of(values.astype("<i2" if signed else "<u2"), bits, PhotometricInterpretation="MONOCHROME1")
    expected: NDArray[Any] = low + high - values
    if scale is not None:
        image.RescaleSlope, image.RescaleIntercept = scale
        expected = expected * float(scale[0]) + float(scale[1])
    np.testing.assert_array_equal(decode(written(image, syntax), "it")[0], expected)


@pytest.mark.parametrize("syntax", SYNTAXES[:2])
@pytest.mark.parametrize("where", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
@pytest.mark.parametrize(
    "sop_class",
    [
        EnhancedMRImageStorage,
        EnhancedXAImageStorage,
        EnhancedUSVolumeStorage,
        OphthalmicTomographyImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    ],
)
def test_a_scale_in_functional_groups_counts_in_every_class(sop_class: str, where: str, syntax: str) -> None:
    values = np.random.default_rng(0).integers(0, 4096, SHAPE).astype("<u2")
    image = image_of(values, 12, SOPClassUID=sop_class, NumberOfFrames=1)
    image.file_meta.MediaStorageSOPClassUID = sop_class
    scale, groups = Dataset(), Dataset()
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = "2", "-1000", "US"
    groups.PixelValueTransformationSequence = Sequence([scale])
    image.SharedFunctionalGroupsSequence = image.PerFrameFunctionalGroupsSequence = Sequence([Dataset()])
    setattr(image, where, Sequence([groups]))
    np.testing.assert_array_equal(decode(written(image, syntax), "it")[0], values.astype(int) * 2 - 1000)


TABLES = np.random.default_rng(1).integers(0, 256, (4096, 3))
COLOURS = ("Red", "Green", "Blue")


def palette(values: NDArray[Any], bits: int, count: int, first: int, width: int) -> Dataset:
    """An image with a palette of `count` colours for the values from `first` on, of `width` bits each."""
    image = image_of(values, bits, PhotometricInterpretation="PALETTE COLOR")
    for channel, colour in enumerate(COLOURS):
        setattr(image, f"{colour}PaletteColorLookupTableDescriptor", [count, first, width])
        entries = TABLES[:count, channel] * (257 if width == 16 else 1)
        setattr(image, f"{colour}PaletteColorLookupTableData", entries.astype(f"<u{width // 8}").tobytes())
    return image


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize(
    ("dtype", "bits", "count", "first", "width"),
    [
        ("u1", 8, 256, 0, 16),
        ("u1", 8, 256, 0, 8),
        ("u1", 8, 64, 10, 16),
        ("<u2", 12, 4096, 0, 16),
        ("<u2", 16, 2048, 500, 16),
        ("<u2", 12, 300, 7, 8),
    ],
)
def test_colours_of_a_palette(dtype: str, bits: int, count: int, first: int, width: int, syntax: str) -> None:
    values = np.random.default_rng(0).integers(0, 2 ** min(bits, 12), SHAPE).astype(dtype)
    expected = TABLES[np.clip(values.astype(int) - first, 0, count - 1)]
    found = decode(written(palette(values, bits, count, first, width), syntax), "it")
    np.testing.assert_array_equal(found[0], expected)
    assert found.dtype == np.uint8


def test_a_palette_in_segments() -> None:
    values = np.arange(120, dtype="u1").reshape(SHAPE)
    image = palette(values, 8, 256, 0, 16)
    for colour, top in zip(COLOURS, (65535, 32767, 0), strict=True):
        del image[f"{colour}PaletteColorLookupTableData"]
        table = np.array([0, 1, 0, 1, 255, top], "<u2").tobytes()  # one entry, and a line from it to the top
        setattr(image, f"Segmented{colour}PaletteColorLookupTableData", table)
    found = decode(as_bytes(image), "it")[0]
    for channel, top in enumerate((65535, 32767, 0)):
        np.testing.assert_allclose(found[..., channel], values * (top / 255) / 256, atol=1)


@pytest.mark.parametrize("lack", ["no descriptor", "too short"])
def test_a_palette_that_cannot_be_read_is_said(lack: str) -> None:
    image = palette(np.zeros(SHAPE, "u1"), 8, 256, 0, 16)
    if lack == "no descriptor":
        del image.RedPaletteColorLookupTableDescriptor
    else:
        image.GreenPaletteColorLookupTableData = bytes(100)
    with pytest.raises(RequestError, match=r"the colours of it cannot be read: its? "):
        decode(as_bytes(image), "it")


def empty_positions(image: Dataset) -> None:
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    groups = Dataset()
    groups.PlanePositionSequence = Sequence()
    image.PerFrameFunctionalGroupsSequence, image.NumberOfFrames = Sequence([groups]), 1


GEOMETRIES: dict[str, Any] = {
    "empty positions in functional groups": empty_positions,
    "directions without a length": lambda image: setattr(image, "ImageOrientationPatient", [0] * 6),
    "two numbers of a position": lambda image: setattr(image, "ImagePositionPatient", [1, 0]),
    "pixels without a size": lambda image: setattr(image, "PixelSpacing", [0, 0]),
    "no class": lambda image: image.pop("SOPClassUID"),
}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_pixels_are_read_whatever_is_said_of_their_place(kind: str, syntax: str) -> None:
    values = np.random.default_rng(0).integers(0, 4096, SHAPE).astype("<u2")
    image = image_of(values, 12)
    GEOMETRIES[kind](image)
    np.testing.assert_array_equal(decode(written(image, syntax), "it")[0], values)


SMOOTH = np.clip(np.add.outer(np.arange(10) * 8, np.arange(12) * 9)[..., None] + np.array([0, 20, 40]), 0, 255).astype(
    np.uint8
)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("said", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("stream", ["4:4:4", "4:2:2", "4:2:0", "red, green, blue", "no marker, 4:2:2"])
def test_colours_of_jpeg_are_those_of_the_stream_whatever_the_header_says(stream: str, said: str, frames: int) -> None:
    options: dict[str, Any] = {"keep_rgb": True} if stream.startswith("red") else {"subsampling": stream[-5:]}
    if stream == "4:4:4":
        options = {"subsampling": stream}
    file = io.BytesIO()
    Image.fromarray(SMOOTH).save(file, "JPEG", quality=100, **options)
    content = file.getvalue()
    if stream.startswith("no marker"):
        assert content[2:4] == b"\xff\xe0"
        content = content[:2] + content[4 + int.from_bytes(content[4:6], "big") :]
    image = dicom_files.picture("US", colour=True, shape=(12, 10))[0]
    image.PhotometricInterpretation = said
    if frames > 1:
        image.NumberOfFrames = frames
    image.PixelData = encapsulate([content] * frames)
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found = decode(as_bytes(image), "it")
    assert found.shape == (frames, 10, 12, 3)
    np.testing.assert_allclose(found.astype(int), np.stack([SMOOTH] * frames), atol=8)
