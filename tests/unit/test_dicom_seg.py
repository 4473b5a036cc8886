# SPDX-License-Identifier: Apache-2.0
"""DICOM SEG out and in: names, order, colours, references and every voxel, for all kinds of images and origins."""

from __future__ import annotations

import numpy as np
import pytest
from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from lib.dicom.seg_reader import read_seg, referenced_series, segment_names
from lib.dicom.seg_writer import write_seg
from lib.dicom.segments import ANATOMY, cielab, codes_of, colour_of
from lib.dicom.series import Series
from lib.errors import RequestError
from tests.unit import dicom_files

NAMES = {"liver": 3, "left kidney": 1, "Blob with ümläut": 7}


def some_labels(grid: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Voxels of all three values, none in the first slice of a volume."""
    labels = np.random.default_rng(seed).choice(np.array([0, 0, 1, 3, 7], np.uint8), grid)
    if grid[2] > 1:
        labels[:, :, 0] = 0
    return labels


@pytest.mark.parametrize("kind", dicom_files.KINDS)
def test_every_voxel_comes_back_under_its_name(kind: str) -> None:
    series = dicom_files.series_of(dicom_files.KINDS[kind]())
    labels = some_labels(series.grid)
    segmentation = write_seg(labels, NAMES, series, "K-Prism")
    back = read_seg(segmentation, series)
    assert list(back.names) == list(NAMES)
    for name, value in NAMES.items():
        np.testing.assert_array_equal(back.labels == back.names[name], labels == value)


@pytest.mark.parametrize("kind", dicom_files.USUAL)
def test_frames_refer_to_the_images_that_they_lie_on(kind: str) -> None:
    series = dicom_files.series_of(dicom_files.KINDS[kind]())
    labels = np.zeros(series.grid, np.uint8)
    row = series.grid[2] // 2
    labels[2:5, 3:6, row] = 3
    segmentation = write_seg(labels, NAMES, series, "K-Prism")
    assert referenced_series(segmentation) == [series.uid]
    assert segmentation.StudyInstanceUID == series.headers[0].StudyInstanceUID
    [group] = segmentation.PerFrameFunctionalGroupsSequence
    source = group.DerivationImageSequence[0].SourceImageSequence[0]
    frame = series.frames[row]
    assert source.ReferencedSOPInstanceUID == frame.instance
    if len(series.headers) < len(series.frames):
        assert int(source.ReferencedFrameNumber) == frame.number
    assert segmentation.get("FrameOfReferenceUID") == series.headers[0].get("FrameOfReferenceUID")
    if series.positioned:
        np.testing.assert_allclose(
            group.PlanePositionSequence[0].ImagePositionPatient, np.array(frame.position), atol=1e-4
        )


def test_segments_have_names_order_codes_and_colours() -> None:
    series = dicom_files.series_of(dicom_files.volume())
    labels = some_labels(series.grid)
    segmentation = write_seg(labels, {**NAMES, "absent": 9}, series, "K-Prism", "clicks")
    assert segment_names(segmentation) == {1: "liver", 2: "left kidney", 3: "Blob with ümläut"}
    first = segmentation.SegmentSequence[0]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert first.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert list(first.RecommendedDisplayCIELabValue) == cielab(colour_of("liver"))
    assert codes_of("blob") != codes_of("cube")
    assert codes_of("Liver ")[0] == ANATOMY


def test_cielab_of_known_colours() -> None:
    # white is (100, 0, 0); pure red is (54.29, 80.81, 69.89) in CIELab under D50
    np.testing.assert_allclose(cielab((255, 255, 255)), [65535, 128 * 257, 128 * 257], atol=2)
    red = [54.29 * 655.35, (80.81 + 128) * 257, (69.89 + 128) * 257]
    np.testing.assert_allclose(cielab((255, 0, 0)), red, atol=15)


def test_names_that_collided_have_different_colours() -> None:
    names = ["blob", "cube", "liver", "spleen", "left kidney", "right kidney", "tumour", "polyp", "lungs"]
    assert len({colour_of(name) for name in names}) == len(names)
    assert colour_of("Liver") == colour_of(" liver")


def foreign_seg(
    instances: list[Dataset], mask: np.ndarray, origin: np.ndarray, turn: list[float], spacing: tuple[float, ...]
) -> Segmentation:
    """A SEG by highdicom on a grid of its own: `mask` is (frame, row, column), `spacing` (rows, columns, frames)."""
    category, kind = codes_of("liver")
    normal = np.cross(turn[:3], turn[3:])
    places = [PlanePositionSequence("PATIENT", origin + normal * spacing[2] * n) for n in range(len(mask))]
    return Segmentation(
        instances,
        mask,
        "BINARY",
        [SegmentDescription(1, "liver", category, kind, "MANUAL")],
        generate_uid(),
        2,
        generate_uid(),
        1,
        "another tool",
        "tool",
        "2",
        "1",
        pixel_measures=PixelMeasuresSequence(spacing[:2], spacing[2], spacing[2]),
        plane_orientation=PlaneOrientationSequence("PATIENT", turn),
        plane_positions=places,
        omit_empty_frames=False,
    )


def placed_box(series: Series) -> np.ndarray:
    labels = np.zeros(series.grid, np.uint8)
    labels[3:8, 2:7, 2:5] = 1
    return labels


def test_a_rectangle_cut_out_of_the_grid_is_put_back() -> None:
    instances = dicom_files.volume()
    series = dicom_files.series_of(instances)
    labels = placed_box(series)
    cut = labels[2:10, 1:9, 2:5].transpose(2, 1, 0).astype(bool)
    corner = np.diag([-1, -1, 1, 1]) @ series.affine @ [2, 1, 2, 1]
    turn = [float(x) for x in instances[0].ImageOrientationPatient]
    row, column = (float(x) for x in instances[0].PixelSpacing)
    depth = float(np.linalg.norm(series.affine[:3, 2]))
    read = read_seg(foreign_seg(instances, cut, corner[:3], turn, (row, column, depth)), series)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.names == {"liver": 1}


def test_frames_of_another_axis_order_are_put_back() -> None:
    """The segmentation's rows are the image's columns and its frames run the other way."""
    instances = dicom_files.volume()
    series = dicom_files.series_of(instances)
    labels = placed_box(series)
    corner = np.diag([-1, -1, 1, 1]) @ series.affine @ [0, 0, 0, 1]
    turn = [float(x) for x in instances[0].ImageOrientationPatient]
    row, column = (float(x) for x in instances[0].PixelSpacing)
    depth = float(np.linalg.norm(series.affine[:3, 2]))
    last = series.grid[2] - 1
    start = corner[:3] + np.cross(turn[:3], turn[3:]) * depth * last
    mask = labels.transpose(2, 0, 1)[::-1].astype(bool)  # rows along i, columns along j: the normal turns round
    segmentation = foreign_seg(instances, mask, start, [*turn[3:], *turn[:3]], (column, row, depth))
    np.testing.assert_array_equal(read_seg(segmentation, series).labels, labels)


def test_a_grid_twice_as_fine_is_taken_to_the_nearest_voxel() -> None:
    instances = dicom_files.volume()
    series = dicom_files.series_of(instances)
    labels = placed_box(series)
    fine = labels.transpose(2, 1, 0).repeat(2, 1).repeat(2, 2).astype(bool)
    turn = [float(x) for x in instances[0].ImageOrientationPatient]
    row, column = (float(x) for x in instances[0].PixelSpacing)
    depth = float(np.linalg.norm(series.affine[:3, 2]))
    start = (np.diag([-1, -1, 1, 1]) @ series.affine @ [-0.25, -0.25, 0, 1])[:3]
    read = read_seg(foreign_seg(instances, fine, start, turn, (row / 2, column / 2, depth)), series)
    np.testing.assert_array_equal(read.labels, labels)


def test_segments_that_overlap_are_drawn_in_their_order() -> None:
    series = dicom_files.series_of(dicom_files.volume())
    first = write_seg(placed_box(series), {"liver": 1}, series, "first")
    second = write_seg(placed_box(series), {"tumour": 1}, series, "second")
    for group in second.PerFrameFunctionalGroupsSequence:
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2
    second.SegmentSequence[0].SegmentNumber = 2
    first.SegmentSequence.append(second.SegmentSequence[0])
    first.PerFrameFunctionalGroupsSequence.extend(second.PerFrameFunctionalGroupsSequence)
    both = np.concatenate([first.pixel_array, second.pixel_array])
    first.NumberOfFrames = len(both)
    first.PixelData = np.packbits(both.ravel(), bitorder="little").tobytes()
    first._pixel_id = None
    read = read_seg(first, series)
    assert read.names == {"tumour": 2}  # of equal ones the higher number is kept, and the other is not listed
    assert set(np.unique(read.labels)) == {0, 2}
    assert read.notes == (
        "'liver' is left out: all of it is also in 'tumour', and a voxel can have one structure only.",
    )


def test_a_segmentation_of_another_place_is_refused_with_a_sentence() -> None:
    instances = dicom_files.volume()
    series = dicom_files.series_of(instances)
    turn = [float(x) for x in instances[0].ImageOrientationPatient]
    mask = np.ones((2, 4, 4), bool)
    far = foreign_seg(instances, mask, np.array([900.0, 900, 900]), turn, (1.0, 1.0, 2.0))
    with pytest.raises(RequestError, match="lies outside series"):
        read_seg(far, series)
    other = dicom_files.series_of(dicom_files.picture("US"))
    with pytest.raises(RequestError, match="has no positions for its frames"):
        read_seg(far, other)
    with pytest.raises(RequestError, match="is not a DICOM segmentation"):
        read_seg(instances[0], series)


def test_labels_that_cannot_be_written_are_refused_with_a_sentence() -> None:
    series = dicom_files.series_of(dicom_files.volume())
    empty = np.zeros(series.grid, np.uint8)
    with pytest.raises(RequestError, match="the label is empty"):
        write_seg(empty, NAMES, series, "K-Prism")
    with pytest.raises(RequestError, match="contains the value 5, which has no name"):
        write_seg(np.full(series.grid, 5, np.uint8), NAMES, series, "K-Prism")
    with pytest.raises(RequestError, match="the label has 2 x 2 x 2 voxels"):
        write_seg(np.ones((2, 2, 2), np.uint8), NAMES, series, "K-Prism")


def test_images_with_missing_tags_can_be_segmented() -> None:
    instances = dicom_files.volume()
    for instance in instances:
        for name in ("PatientID", "StudyDate", "AccessionNumber", "StudyID", "PatientSex", "FrameOfReferenceUID"):
            del instance[name]
    series = dicom_files.series_of(instances)
    labels = placed_box(series)
    np.testing.assert_array_equal(read_seg(write_seg(labels, {"liver": 1}, series, "K-Prism"), series).labels, labels)
