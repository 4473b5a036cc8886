# SPDX-License-Identifier: Apache-2.0
"""The voxels of a series that arrives are those of the instances as SimpleITK reads them, for every kind of series."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from lib.dicom.pixel_type import PixelType, TooWideError, pixel_type
from lib.dicom.pixels import decode
from lib.dicom.series import decode_file, describe_series, read_headers, read_voxels
from lib.dicom.series_headers import SeriesHeaders
from lib.dicom.volumes import save_volume
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from lib.imaging.reading import read_image
from tests.unit import dicom_files
from tests.unit.dicom_arrivals import MemoryStore, arriving, items_of


def rle() -> list[Dataset]:
    instances = dicom_files.volume()
    for instance in instances:
        instance.compress(RLELossless)
    return instances


def jpeg_2000() -> list[Dataset]:
    instances = dicom_files.volume()
    for instance in instances:
        instance.PixelRepresentation = 0
    return dicom_files.compress(instances, JPEG2000Lossless, dicom_files.jpeg_2000)


def inverted() -> list[Dataset]:
    instances = dicom_files.volume("CT")
    for instance in instances:
        instance.PhotometricInterpretation = "MONOCHROME1"
    return instances


def palette(bits: int = 8) -> list[Dataset]:
    [instance] = dicom_files.picture("US")
    instance.PhotometricInterpretation = "PALETTE COLOR"
    for number, name in enumerate(("Red", "Green", "Blue")):
        table = (np.arange(256) * (number + 1) % 256).astype(np.uint16)
        setattr(instance, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(instance, f"{name}PaletteColorLookupTableData", (table * 257).astype("<u2").tobytes())
    return [instance]


def with_slopes() -> list[Dataset]:
    """As PET: each image has a slope of its own."""
    instances = dicom_files.volume("MR")
    for number, instance in enumerate(instances):
        instance.RescaleSlope, instance.RescaleIntercept = f"{0.37 + number / 8:.6g}", "-5.5"
    return instances


def turned() -> list[Dataset]:
    instances = dicom_files.volume("MR")
    instances[1].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    return instances


KINDS: dict[str, Callable[[], list[Dataset]]] = {
    "CT": dicom_files.volume,
    "one voxel": lambda: dicom_files.volume("MR", (1, 1, 1)),
    "multi-frame": dicom_files.enhanced,
    "cine": dicom_files.cine,
    "phases": lambda: dicom_files.phases((12, 10, 3), "EchoTime", [1.2, 2.4]),
    "colour": lambda: dicom_files.picture("ES", colour=True),
    "no positions": lambda: dicom_files.several_pictures("CR"),
    "mixed orientations": turned,
    "slopes": with_slopes,
    "MONOCHROME1": inverted,
    "RLE": rle,
    "JPEG 2000": jpeg_2000,
    "JPEG-LS": lambda: dicom_files.compress(dicom_files.picture("US"), JPEGLSLossless, dicom_files.jpeg_ls),
    "JPEG": lambda: dicom_files.compress(dicom_files.cine(), JPEGBaseline8Bit, dicom_files.jpeg),
}


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_are_those_of_the_instances(kind: str, tmp_path: Path) -> None:
    store = MemoryStore(KINDS[kind]())
    (tmp_path / "files").mkdir()
    files = dicom_files.save(store.instances, tmp_path / "files")
    whole = describe_series(list(read_headers(files.values()).values()))
    expected = read_voxels(whole, files)
    volume = arriving(store, tmp_path)
    assert [frame.instance for frame in volume.series.frames] == [frame.instance for frame in whole.frames]
    np.testing.assert_allclose(volume.series.affine, whole.affine, rtol=0, atol=1e-12)
    early = volume.image("the series")
    path = volume.complete()
    np.testing.assert_array_equal(early.array, expected.astype(early.array.dtype))
    assert np.array_equal(early.array, expected) or early.array.dtype == np.float32
    save_volume(expected, whole.affine, tmp_path / "expected.nii.gz", whole.volumes)
    if expected.min() < expected.max():
        from_file, before = read_image(path, "the file"), read_image(tmp_path / "expected.nii.gz", "the file")
        np.testing.assert_array_equal(from_file.array, before.array)
        np.testing.assert_array_equal(from_file.affine, before.affine)
        np.testing.assert_array_equal(early.affine, before.affine)
        described = (before.slice_axis, before.volumes, before.dimensions, before.is_colour)
        for image in (from_file, early):
            assert (image.slice_axis, image.volumes, image.dimensions, image.is_colour) == described


def test_a_palette_of_16_bits_gives_the_upper_eight(tmp_path: Path) -> None:
    store = MemoryStore(palette())
    image = arriving(store, tmp_path).image("the series")
    assert image.arrival is not None
    image.arrival.wait([0])
    stored = np.frombuffer(store.instances[0].PixelData, np.uint8)[: 13 * 9].reshape(9, 13).T
    for channel in range(3):
        np.testing.assert_array_equal(image.array[:, :, 0, channel], stored.astype(int) * (channel + 1) % 256)


@pytest.mark.parametrize("stored", [(16, 12, 0), (16, 16, 0), (16, 16, 1), (16, 12, 1), (8, 8, 0)])
@pytest.mark.parametrize(
    "rescale", [None, ("1", "0"), ("1", "-1024"), ("2", "0"), ("0.37", "-5.5"), ("-1", "0"), ("0", "0")]
)
def test_plain_images_are_read_as_simpleitk_reads_them(
    stored: tuple[int, int, int], rescale: tuple[str, str] | None, tmp_path: Path
) -> None:
    image = copy.deepcopy(dicom_files.volume("CT", (12, 10, 1))[0])
    image.BitsAllocated, image.BitsStored, image.PixelRepresentation = stored
    image.HighBit = stored[1] - 1
    low, high = (-(2 ** (stored[1] - 1)), 2 ** (stored[1] - 1)) if stored[2] else (0, 2 ** stored[1])
    values = np.random.default_rng(0).integers(low, high, 120)
    values[:2] = low, high - 1
    image.PixelData = values.astype(f"{'i' if stored[2] else 'u'}{stored[0] // 8}").tobytes()
    del image.RescaleSlope, image.RescaleIntercept
    if rescale is not None:
        image.RescaleSlope, image.RescaleIntercept = rescale
    image.save_as(tmp_path / "image.dcm", write_like_original=False)
    found = decode(as_bytes(image), "image")
    np.testing.assert_array_equal(found, decode_file(tmp_path / "image.dcm"))
    header = Dataset()
    header.update(image)
    kind = pixel_type([header], wide=True)
    np.testing.assert_array_equal(kind.convert(found, "image"), found.astype(kind.dtype))


def test_bits_above_the_values_are_no_part_of_them() -> None:
    image = dicom_files.volume("MR", (12, 10, 1))[0]
    values = np.random.default_rng(0).integers(0, 65536, 120).astype(np.uint16)
    image.PixelData, image.BitsStored, image.HighBit, image.PixelRepresentation = values.tobytes(), 12, 11, 0
    np.testing.assert_array_equal(decode(as_bytes(image), "image").ravel(), values & 4095)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Modality": "CT", "BitsStored": 12, "HighBit": 11, "RescaleIntercept": "-1024"}, "int16"),
        ({"Modality": "CT", "BitsStored": 16, "HighBit": 15, "RescaleIntercept": "-1024"}, "int16"),
        ({"Modality": "MR", "BitsStored": 16, "HighBit": 15, "RescaleIntercept": "-1024"}, "int32"),
        ({"Modality": "MR", "BitsStored": 12, "HighBit": 11}, "uint16"),
        ({"Modality": "MR", "RescaleSlope": "0.5"}, "float32"),
        ({"Modality": "US", "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "uint8"),
        ({"Modality": "CT", "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "uint8"),
        ({"Modality": "US", "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "uint8"),
    ],
)
def test_the_type_follows_from_the_headers(change: dict[str, object], expected: str) -> None:
    headers = []
    for instance in dicom_files.volume():
        header = Dataset()
        header.update(instance)
        header.PixelRepresentation, header.RescaleSlope, header.RescaleIntercept = 0, "1", "0"
        headers.append(header)
    for name, value in change.items():
        setattr(headers[2], name, value)
        for header in headers:
            setattr(header, name, value) if name in ("Modality", "SamplesPerPixel", "BitsAllocated") else None
            setattr(header, name, value) if not name.startswith("Rescale") else None
    for order in (headers, headers[::-1]):
        assert pixel_type(order).dtype == np.dtype(expected)


def test_grey_and_coloured_images_are_no_volume() -> None:
    grey, colour = dicom_files.picture("OT")[0], dicom_files.picture("ES", colour=True)[0]
    with pytest.raises(RequestError, match="has grey and coloured images; it cannot be a volume"):
        pixel_type([grey, colour])


def test_a_value_that_does_not_fit_is_named() -> None:
    with pytest.raises(TooWideError, match=r"image 1\.2\.3 holds the value 40000, which does not fit into .*int16"):
        PixelType(np.dtype(np.int16)).convert(np.array([[[0, 40000]]]), "1.2.3")


def test_what_is_no_dicom_file_is_said() -> None:
    with pytest.raises(RequestError, match=r"image 1\.2\.3 is not a readable DICOM file"):
        decode(b"<html>sorry</html>", "1.2.3")


@pytest.mark.parametrize("kind", KINDS)
def test_the_attributes_that_are_parsed_first_are_enough(kind: str, tmp_path: Path) -> None:
    """Order, grid and warnings from a few attributes are those from all."""
    instances = KINDS[kind]()
    headers = SeriesHeaders.of(items_of(instances), len(instances))
    headers.write(tmp_path)
    assert SeriesHeaders.read(tmp_path) == headers
    series, _ = headers.describe(tmp_path)
    whole = describe_series(instances)
    assert (series.frames, series.grid, series.warnings, series.volumes) == (
        (whole.frames, whole.grid, whole.warnings, whole.volumes)
    )
    used = {frame.instance for frame in whole.frames}
    expected = [item.SOPInstanceUID for item in instances if item.SOPInstanceUID in used]
    assert [header.SOPInstanceUID for header in series.headers] == expected
    assert series.headers[0].PatientName == instances[0].PatientName
