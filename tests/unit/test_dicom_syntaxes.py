# SPDX-License-Identifier: Apache-2.0
"""Pixels of every transfer syntax and layout: the right values, or a sentence that says what cannot be read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, JPEGLSLossless

from lib.dicom.pixels import decode
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from tests.unit import dicom_files, htj2k_files
from tests.unit.dicom_arrivals import MemoryStore, arriving

VALUES = np.random.default_rng(0).integers(0, 4096, (1, 10, 12)).astype(np.uint16)


def image_of(**changes: Any) -> Dataset:
    """An image of 12 bits with `VALUES`."""
    image = copy.deepcopy(dicom_files.volume("MR", (12, 10, 1))[0])
    image.BitsStored, image.HighBit, image.PixelRepresentation = 12, 11, 0
    image.PixelData = VALUES.tobytes()
    for name, value in changes.items():
        setattr(image, name, value)
    return image


def big_endian() -> Dataset:
    image = image_of(PixelData=VALUES.astype(">u2").tobytes())
    image.file_meta.TransferSyntaxUID, image.is_little_endian = ExplicitVRBigEndian, False
    return image


def deflated() -> Dataset:
    image = image_of()
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return image


LAYOUTS: dict[str, Callable[[], Dataset]] = {
    "the lower bits": image_of,
    "the upper bits": lambda: image_of(HighBit=15, PixelData=(VALUES << 4).tobytes()),
    "the lower bits, by a wrong header the upper": lambda: image_of(HighBit=15),
    "big endian": big_endian,
    "deflated": deflated,
    "JPEG-LS": lambda: dicom_files.compress([image_of()], JPEGLSLossless, dicom_files.jpeg_ls)[0],
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_values_are_those_that_were_stored(kind: str) -> None:
    np.testing.assert_array_equal(decode(as_bytes(LAYOUTS[kind]()), "it"), VALUES)


@pytest.mark.parametrize("syntax", htj2k_files.SYNTAXES)
@pytest.mark.parametrize("kind", htj2k_files.STREAMS)
def test_htj2k_is_decoded(kind: str, syntax: str, tmp_path: Path) -> None:
    plain = htj2k_files.images(kind, "htj2k")
    if kind != "colour":
        for image in plain:
            image.RescaleSlope, image.RescaleIntercept = "2", "-1024"
    volumes = []
    for name, instances in (("plain", plain), ("packed", htj2k_files.compressed(plain, kind, syntax))):
        volume = arriving(MemoryStore(instances), tmp_path / name)
        volume.complete()
        volumes.append(volume.image(name).array)
    np.testing.assert_array_equal(*volumes)
    expected = htj2k_files.pixels(kind).astype(int)
    expected = expected if kind == "colour" else expected * 2 - 1024
    np.testing.assert_array_equal(volumes[1][:, :, 0].swapaxes(0, 1), expected)


def test_htj2k_of_several_frames_and_inverted() -> None:
    plain, packed = htj2k_files.films("uint8")
    np.testing.assert_array_equal(decode(as_bytes(packed[0]), "it"), decode(as_bytes(plain[0]), "it"))
    plain = htj2k_files.images("uint8", "inverted", 1)
    plain[0].PhotometricInterpretation = "MONOCHROME1"
    [packed_one] = htj2k_files.compressed(plain, "uint8")
    np.testing.assert_array_equal(decode(as_bytes(packed_one), "it"), decode(as_bytes(plain[0]), "it"))


@pytest.mark.parametrize("slopes", [(1, 2, 3, 4, 5, 6), (0.5, 0.5, 0.5, 2, 2, 2), (2, 2, 2, 2, 2, 2)])
@pytest.mark.parametrize("where", ["of each frame", "shared"])
def test_frames_of_an_enhanced_image_are_rescaled_by_their_own_slopes(
    slopes: tuple[float, ...], where: str, tmp_path: Path
) -> None:
    [image] = dicom_files.enhanced()
    for name in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        image.pop(name, None)
    groups = image.PerFrameFunctionalGroupsSequence
    if where == "shared":
        slopes, groups = slopes[:1] * 6, image.SharedFunctionalGroupsSequence
    for number, (group, slope) in enumerate(zip(groups, slopes, strict=False)):
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, 10 * number, "US"
        group.PixelValueTransformationSequence = Sequence([item])
    intercepts = np.arange(6) * (0 if where == "shared" else 10)
    expected = image.pixel_array * np.array(slopes)[:, None, None] + intercepts[:, None, None]
    volume = arriving(MemoryStore([image]), tmp_path)
    volume.complete()
    numbers = [frame.number - 1 for frame in volume.series.frames]
    np.testing.assert_array_equal(volume.image("it").array.transpose(2, 1, 0), expected[numbers])


def encapsulated(syntax: str) -> Dataset:
    image = image_of(PixelData=encapsulate([b"abcd"]))
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = syntax
    return image


def floating() -> Dataset:
    image = image_of(BitsAllocated=32)
    del image.PixelData
    image.FloatPixelData = bytes(480)
    return image


UNREADABLE: dict[str, tuple[Callable[[], Dataset], str]] = {
    "a film in MPEG-4": (lambda: encapsulated("1.2.840.10008.1.2.4.102"), r"MPEG-4 AVC/H\.264 .* cannot be decoded"),
    "broken HTJ2K": (lambda: encapsulated(htj2k_files.SYNTAXES[0]), "High-Throughput JPEG 2000, .* cannot be decoded"),
    "broken JPEG-LS": (lambda: encapsulated(JPEGLSLossless), "JPEG-LS .* cannot be decoded"),
    "too few bytes": (lambda: image_of(PixelData=bytes(100)), "100 bytes of pixels, its header says 240"),
    "no pixels": (lambda: image_of(PixelData=b""), "0 bytes of pixels, its header says 240"),
    "pixels of 12 bits": (lambda: image_of(BitsAllocated=12), "its pixels have 12 bits; expected 1, 8, 16 or 32"),
    "pixels of real numbers": (floating, r"no pixels that are whole numbers \(FloatPixelData\)"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_said(kind: str) -> None:
    make, sentence = UNREADABLE[kind]
    with pytest.raises(RequestError, match=sentence):
        decode(as_bytes(make()), "it")
