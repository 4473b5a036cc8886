# SPDX-License-Identifier: Apache-2.0
"""Segmentations of other makers with odd frames, names and directions: every voxel at its place, or a sentence."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.segments import codes_of
from lib.dicom.series import Series, describe_series
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from tests.unit import dicom_files

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.7648, 0.6442, 0.0, -0.5934, 0.7045, 0.3894)


def images_at(
    depths: list[float], turn: tuple[float, ...] = AXIAL, shape: tuple[int, int] = (12, 10), **changes: Any
) -> list[Dataset]:
    """Images at depths along their normal (mm), of 0.7 mm a pixel."""
    images = dicom_files.volume("CT", (*shape, len(depths)))
    normal = np.cross(turn[:3], turn[3:])
    for image, depth in zip(images, depths, strict=True):
        image.ImageOrientationPatient, image.PixelSpacing = list(turn), [0.7, 0.7]
        image.pop("SpacingBetweenSlices", None)
        image.ImagePositionPatient = [f"{x:.9g}" for x in np.array([-100.0, -50, 30]) + normal * depth]
        for name, value in changes.items():
            setattr(image, name, value)
    return images


def drawn(grid: tuple[int, int, int], count: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, count + 1, grid).astype(np.uint8)


def by_highdicom(
    images: list[Dataset],
    labels: NDArray[np.uint8],
    names: tuple[str, ...] = ("a", "b"),
    kind: str = "BINARY",
    **more: Any,
) -> Dataset:
    """A SEG of labels (column, row, slice) on the slices of the series, or on a part of them."""
    index = describe_series(images).index()
    slices = [index[str(image.SOPInstanceUID), 1] for image in images]
    planes = labels[:, :, slices].transpose(2, 1, 0)
    masks = np.stack([planes == value for value in range(1, len(names) + 1)], axis=-1)
    organ = codes_of("liver")
    return Segmentation(
        images,
        masks if kind == "BINARY" else masks.astype(float),
        kind,
        [SegmentDescription(number, name, *organ, "MANUAL") for number, name in enumerate(names, 1)],
        generate_uid(),
        2,
        generate_uid(),
        1,
        "another tool",
        "tool",
        "2",
        "1",
        **more,
    )


def read(segmentation: Dataset, series: Series) -> Any:
    return read_seg(dcmread(io.BytesIO(as_bytes(segmentation))), series)


EVEN, DENSE, UNEVEN = [2.5 * k for k in range(6)], [1.25 * k for k in range(6)], [0.0, 1.0, 3.0, 3.5, 8.0, 9.0]


@pytest.mark.parametrize(
    ("depths", "thickness", "between"),
    [
        (EVEN, 2.5, 2.5),
        (EVEN, 5.0, None),
        (EVEN, 5.0, 5.0),
        (EVEN, 5.0, -2.5),
        (EVEN, 1.0, None),
        (DENSE, 3.0, None),
        (UNEVEN, 1.0, None),
        (UNEVEN, 2.0, None),
        (UNEVEN, 5.0, 5.0),
    ],
)
def test_a_rectangle_on_slices_of_any_thickness(depths: list[float], thickness: float, between: float | None) -> None:
    """Slices overlap, or have gaps, or are not equally far apart; a slice is empty and has no frame."""
    images = images_at(depths, SliceThickness=thickness)
    series = describe_series(images)
    labels = np.zeros(series.grid, np.uint8)
    labels[2:9, 2:8] = drawn((7, 6, 6))
    labels[:, :, 4] = 0
    corner = np.array([1.4, 1.4, 0])
    segmentation = by_highdicom(
        images,
        labels[2:9, 2:8],
        pixel_measures=PixelMeasuresSequence((0.7, 0.7), thickness, None),
        plane_orientation=PlaneOrientationSequence("PATIENT", AXIAL),
        plane_positions=[
            PlanePositionSequence("PATIENT", np.array(image.ImagePositionPatient, float) + corner) for image in images
        ],
    )
    if between is not None:
        measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = between
    found = read(segmentation, series)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.notes == ()


@pytest.mark.parametrize("thickness", [0.7, 1.4, 0.3])
def test_sagittal_frames_on_axial_images(thickness: float) -> None:
    images = images_at(EVEN)
    series = describe_series(images)
    labels = np.zeros(series.grid, np.uint8)
    labels[3:8, 2:7, 1:4] = 1
    labels[5, 4, 2] = 0
    origin = np.array([-100.0, -50, 30])
    segmentation = Segmentation(
        images,
        labels.transpose(0, 2, 1).astype(bool),  # a frame for each column, its rows are slices
        "BINARY",
        [SegmentDescription(1, "a", *codes_of("liver"), "MANUAL")],
        generate_uid(),
        2,
        generate_uid(),
        1,
        "another tool",
        "tool",
        "2",
        "1",
        pixel_measures=PixelMeasuresSequence((2.5, 0.7), thickness),
        plane_orientation=PlaneOrientationSequence("PATIENT", (0, 1, 0, 0, 0, 1)),
        plane_positions=[PlanePositionSequence("PATIENT", origin + np.array([0.7 * i, 0, 0])) for i in range(12)],
    )
    np.testing.assert_array_equal(read(segmentation, series).labels, labels)


@pytest.mark.parametrize("digits", [3, 2, 1])
def test_directions_that_are_rounded_in_the_images(digits: int) -> None:
    """Segmentations with the same directions, and with exact ones, are on the images, without a word."""
    rounded = tuple(np.round(OBLIQUE, digits).tolist())
    images = images_at(EVEN[:3], rounded, (200, 160))
    series = describe_series(images)
    np.testing.assert_allclose(np.linalg.norm(series.affine[:3, :2], axis=0), 0.7, rtol=1e-6)
    labels = drawn(series.grid)
    same = by_highdicom(images, labels)
    others = [write_seg(labels, {"a": 1, "b": 2}, series, "own"), same]
    if digits == 3:
        exact = by_highdicom(images, labels)
        exact.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = list(OBLIQUE)
        others.append(exact)
    for segmentation in others:
        found = read(segmentation, series)
        np.testing.assert_array_equal(found.labels, labels)
        assert found.notes == ()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["lesion", "lesion"], ["lesion", "lesion 2"]),
        (["lesion 3", "lesion", "lesion"], ["lesion 3", "lesion", "lesion 3 3"]),
        (["lesion 2", "lesion", "lesion", "lesion"], ["lesion 2", "lesion", "lesion 3", "lesion 4"]),
        (["", ""], ["segment 1", "segment 2"]),
        (["left\\right", "Leber^links"], ["left\\right", "Leber^links"]),
        (["誠\\肝", "誠\\肝"], ["誠\\肝", "誠\\肝 2"]),
    ],
)
def test_names_that_repeat_or_hold_a_backslash(labels: list[str], names: list[str]) -> None:
    images = images_at(EVEN)
    series = describe_series(images)
    expected = drawn(series.grid, len(labels))
    segmentation = by_highdicom(images, expected, tuple(f"n{number}" for number in range(len(labels))))
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    for item, label in zip(segmentation.SegmentSequence, labels, strict=True):
        item.SegmentLabel = label
    found = read(segmentation, series)
    assert list(found.names) == names
    np.testing.assert_array_equal(found.labels, expected)


def of_two_images(segmentation: Dataset, *, items: bool) -> Dataset:
    """Each frame names an image of another series first, in the same item or in one of its own."""
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        derivation = group.DerivationImageSequence[0]
        source = derivation.SourceImageSequence[0]
        other = copy.deepcopy(source)
        other.ReferencedSOPInstanceUID = generate_uid()
        if items:
            first = copy.deepcopy(derivation)
            first.SourceImageSequence = Sequence([other])
            group.DerivationImageSequence = Sequence([first, derivation])
        else:
            derivation.SourceImageSequence = Sequence([other, source])
    return segmentation


def without_positions(segmentation: Dataset) -> Dataset:
    for group in [*segmentation.SharedFunctionalGroupsSequence, *segmentation.PerFrameFunctionalGroupsSequence]:
        for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            group.pop(name, None)
    return segmentation


def without_images(segmentation: Dataset) -> Dataset:
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    return segmentation


def shared(segmentation: Dataset) -> Dataset:
    return segmentation.SharedFunctionalGroupsSequence[0]


def changed(segmentation: Dataset, name: str, value: object) -> Dataset:
    """The segmentation with another value where all frames have it in common."""
    sequence = "PlaneOrientationSequence" if "Orientation" in name else "PixelMeasuresSequence"
    setattr(shared(segmentation)[sequence][0], name, value)
    return segmentation


def lacking(segmentation: Dataset, *names: str) -> Dataset:
    for name in names:
        del segmentation[name]
    return segmentation


ODD: dict[str, Callable[[Dataset], Dataset]] = {
    "of two images": lambda seg: of_two_images(seg, items=False),
    "of two images, no positions": lambda seg: without_positions(of_two_images(seg, items=False)),
    "derived twice, no positions": lambda seg: without_positions(of_two_images(seg, items=True)),
    "directions without a length": lambda seg: changed(seg, "ImageOrientationPatient", [0] * 6),
    "no images, pixels without a size": lambda seg: changed(without_images(seg), "PixelSpacing", [0, 0]),
    "no images, size of pixels not given": lambda seg: (without_images(seg), shared(seg).pop("PixelMeasuresSequence"))[
        0
    ],
    "no number of frames": lambda seg: lacking(seg, "NumberOfFrames"),
    "no number of samples": lambda seg: lacking(seg, "SamplesPerPixel"),
}


@pytest.mark.parametrize("kind", ODD)
def test_frames_that_say_less_or_more_than_usual(kind: str) -> None:
    images = images_at(EVEN)
    series = describe_series(images)
    labels = drawn(series.grid)
    found = read(ODD[kind](by_highdicom(images, labels)), series)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.notes == ()


def test_segments_without_a_name_are_told() -> None:
    images = images_at(EVEN)
    series = describe_series(images)
    labels = drawn(series.grid)
    segmentation = by_highdicom(images, labels)
    segmentation.SegmentSequence.pop()
    found = read(segmentation, series)
    np.testing.assert_array_equal(found.labels, labels == 1)
    assert found.notes == ("The segmentation shows the segments 2, which it does not name; they are left out.",)
    segmentation.SegmentSequence[0].SegmentNumber = 9
    with pytest.raises(RequestError, match="shows the segments 1, 2, which it does not name"):
        read(segmentation, series)
    segmentation.SegmentSequence = Sequence()
    with pytest.raises(RequestError, match="names no segments"):
        read(segmentation, series)


@pytest.mark.parametrize("maximum", [100, 255])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_fractions_in_compressed_frames(syntax: str, maximum: int) -> None:
    images = images_at(EVEN)
    series = describe_series(images)
    labels = drawn(series.grid)
    segmentation = by_highdicom(images, labels, kind="FRACTIONAL", max_fractional_value=maximum)
    encode = dicom_files.jpeg_2000 if syntax == JPEG2000Lossless else dicom_files.jpeg_ls
    planes = segmentation.pixel_array
    if syntax == RLELossless:
        segmentation.compress(RLELossless)
    else:
        segmentation.PixelData = encapsulate([encode(plane) for plane in planes])
        segmentation["PixelData"].VR, segmentation["PixelData"].is_undefined_length = "OB", True
        segmentation.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_array_equal(read(segmentation, series).labels, labels)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Doe\\Jane"),
        ("ReferringPhysicianName", "Dr A^X\\Dr B\\Dr C"),
        ("AccessionNumber", "1\\2"),
        ("PatientID", "7\\8"),
    ],
)
def test_a_label_of_images_with_two_names(keyword: str, value: str) -> None:
    images = images_at(EVEN)
    for image in images:
        setattr(image, keyword, value)
    series = describe_series(images)
    labels = drawn(series.grid)
    stored = write_seg(labels, {"a": 1, "b": 2}, series, "own")
    found = dcmread(io.BytesIO(as_bytes(stored)))
    assert "\\".join(str(part) for part in found[keyword].value) == value
    np.testing.assert_array_equal(read_seg(found, series).labels, labels)
