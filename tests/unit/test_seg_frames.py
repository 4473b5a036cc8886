# SPDX-License-Identifier: Apache-2.0
"""Frames of a DICOM SEG one at a time: bits, fractions and label maps, compressed or not."""

from __future__ import annotations

import numpy as np
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from lib.dicom.seg_frames import SegFrames
from lib.dicom.seg_reader import SEG_SOP_CLASSES, read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.segments import codes_of
from lib.dicom.series import Series
from tests.unit import dicom_files

NAMES = {"liver": 1, "spleen": 2, "tumour": 3}


def some_labels(series: Series) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 4, series.grid).astype(np.uint8)


@pytest.mark.parametrize("shape", [(7, 5, 6), (8, 4, 3), (1, 1, 3), (13, 9, 1)])
def test_bits_are_unpacked_as_pydicom_unpacks_them(shape: tuple[int, int, int]) -> None:
    series = dicom_files.series_of(dicom_files.volume(shape=shape) if shape[2] > 1 else dicom_files.picture("CR"))
    segmentation = write_seg(np.ones(series.grid, np.uint8) + (some_labels(series) > 1), NAMES, series, "test")
    frames = SegFrames(segmentation)
    planes = list(frames.planes([1, 2]))
    masks = np.stack([frames.mask(plane) for plane in planes])
    np.testing.assert_array_equal(masks, segmentation.pixel_array.reshape(masks.shape))
    assert [plane.segment for plane in frames.planes([2])] == [plane.segment for plane in planes if plane.segment == 2]


def test_too_few_bits_are_refused() -> None:
    series = dicom_files.series_of(dicom_files.volume())
    segmentation = write_seg(some_labels(series), NAMES, series, "test")
    segmentation.PixelData = segmentation.PixelData[:-4]
    with pytest.raises(ValueError, match="too few for 18 frames of 12 x 10 pixels"):
        read_seg(segmentation, series)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_voxel_of_a_fraction_belongs_to_a_segment_above_one_half(syntax: str) -> None:
    instances = dicom_files.volume(shape=(7, 5, 6))
    series = dicom_files.series_of(instances)
    fractions = np.random.default_rng(0).uniform(0, 1, series.grid)
    order = [series.index()[str(image.SOPInstanceUID), 1] for image in instances]
    segmentation = Segmentation(
        instances,
        fractions[:, :, order].transpose(2, 1, 0),
        "FRACTIONAL",
        [SegmentDescription(1, "liver", *codes_of("liver"), "MANUAL")],
        generate_uid(),
        2,
        generate_uid(),
        1,
        "another tool",
        "tool",
        "2",
        "1",
        max_fractional_value=100,
        transfer_syntax_uid=syntax,
    )
    read = read_seg(segmentation, series)
    np.testing.assert_array_equal(read.labels, np.around(fractions * 100) > 50)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_label_map_is_read(bits: int) -> None:
    """Its values are the segment numbers; those that no segment has are background."""
    series = dicom_files.series_of(dicom_files.volume(shape=(7, 5, 6)))
    labels = some_labels(series)
    numbers = np.array([0, 4, 7, 200 if bits == 8 else 40000], np.uint16)
    segmentation = write_seg(labels, NAMES, series, "test")
    segmentation.SOPClassUID, segmentation.SegmentationType = SEG_SOP_CLASSES[1], "LABELMAP"
    segmentation.BitsAllocated = segmentation.BitsStored = bits
    segmentation.HighBit = bits - 1
    for item, number in zip(segmentation.SegmentSequence, numbers[1:], strict=True):
        item.SegmentNumber = int(number)
    values = numbers[labels]
    values[0, 0] = 11
    groups = {}
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        del group.SegmentIdentificationSequence
        groups[series.index()[str(source), 1]] = group
    segmentation.PerFrameFunctionalGroupsSequence = Sequence(groups.values())
    segmentation.NumberOfFrames = len(groups)
    pixels = values[:, :, list(groups)].transpose(2, 1, 0).astype(f"<u{bits // 8}").tobytes()
    segmentation.PixelData = pixels + b"\0" * (len(pixels) % 2)
    expected = labels.copy()
    expected[0, 0] = 0
    np.testing.assert_array_equal(read_seg(segmentation, series).labels, expected)


def test_of_overlapping_segments_the_higher_number_is_kept_in_any_order_of_frames() -> None:
    series = dicom_files.series_of(dicom_files.volume())
    labels = some_labels(series)
    segmentation = write_seg(labels, NAMES, series, "test")
    masks = segmentation.pixel_array.astype(bool)
    numbers = np.array([_segment(group) for group in segmentation.PerFrameFunctionalGroupsSequence])
    masks[numbers == 1] = True
    shuffled = np.random.default_rng(0).permutation(len(masks))
    groups = list(segmentation.PerFrameFunctionalGroupsSequence)
    segmentation.PerFrameFunctionalGroupsSequence = Sequence(groups[number] for number in shuffled)
    segmentation.PixelData = np.packbits(masks[shuffled], bitorder="little").tobytes()
    np.testing.assert_array_equal(read_seg(segmentation, series).labels, np.maximum(labels, 1))


def _segment(group: Dataset) -> int:
    return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
