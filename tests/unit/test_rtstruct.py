# SPDX-License-Identifier: Apache-2.0
"""RT structure sets out and in: every voxel, every name, any orientation, and what other tools write."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.path import Path as MatplotlibPath
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from lib.dicom.label_objects import read_label_object
from lib.dicom.rtstruct_reader import read_rtstruct
from lib.dicom.rtstruct_writer import RTSTRUCT_SOP_CLASS, write_rtstruct
from lib.dicom.seg_reader import referenced_series
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series
from lib.dicom.series_writer import dicom_series
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from tests.unit import dicom_files
from tests.unit.rtstructs import Drawn, box, foreign

NAMES = {"肝臓": 3, "Tumor, außen": 1, "печень": 7}
SHAPE = (14, 11, 7)

PLACED = [kind for kind in dicom_files.KINDS if dicom_files.series_of(dicom_files.KINDS[kind]()).positioned]
UNPLACED = [kind for kind in dicom_files.KINDS if kind not in PLACED]

TURNS = {
    "axial": [[0.7, 0, 0], [0, 0.7, 0], [0, 0, 2.5]],
    "axial, feet first": [[-0.7, 0, 0], [0, 0.7, 0], [0, 0, -2.5]],
    "coronal": [[0.5, 0, 0], [0, 0, 3.0], [0, -0.9, 0]],
    "sagittal": [[0, 0, 4.0], [0.6, 0, 0], [0, -0.6, 0]],
    "microscopic": [[0.00025, 0, 0], [0, 0.00025, 0], [0, 0, 0.001]],
}
"""Affines (RAS+) of columns, rows and slices, in millimetres."""


def turned(turn: str) -> Series:
    """A series in an orientation, far from the origin."""
    affine = np.eye(4)
    affine[:3, :3] = TURNS[turn]
    affine[:3, 3] = [-187.3, 1012.75, 55.125]
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return dicom_files.series_of(list(dicom_series(dicom_files.image_of(array, affine), turn, "MR")))


def noise(grid: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Voxels of all three values, up to the border; none on the second slice."""
    labels = np.random.default_rng(0).choice(np.array([0, 0, 1, 3, 7], np.uint8), grid)
    labels[:, :, 1:2] = 0
    labels[:, :, 0] = np.where(labels[:, :, 0] == 0, 3, labels[:, :, 0])
    return labels


def sent(structures: Dataset) -> Dataset:
    """A structure set as it comes from a server."""
    return dcmread(io.BytesIO(as_bytes(structures)))


def assert_same(structures: Dataset, series: Series, labels: NDArray[np.uint8], names: dict[str, int]) -> None:
    """The structure set gives the labels, voxel by voxel, and tells nothing."""
    back = read_rtstruct(structures, series)
    assert list(back.names) == list(names) and back.notes == ()
    for name, value in names.items():
        np.testing.assert_array_equal(back.labels == back.names[name], labels == value, err_msg=name)


@pytest.mark.parametrize("kind", PLACED)
def test_every_voxel_comes_back_under_its_name(kind: str) -> None:
    series = dicom_files.series_of(dicom_files.KINDS[kind]())
    labels = noise(series.grid)
    assert_same(sent(write_rtstruct(labels, NAMES, series, "K-Prism")), series, labels, NAMES)


@pytest.mark.parametrize("turn", TURNS)
def test_in_any_orientation(turn: str) -> None:
    series = turned(turn)
    labels = noise(series.grid)
    assert_same(sent(write_rtstruct(labels, NAMES, series, "K-Prism")), series, labels, NAMES)


@pytest.mark.parametrize("turn", [*TURNS, "oblique"])
def test_another_rasteriser_finds_the_same_voxels(turn: str) -> None:
    """Millimetres to pixels by the headers of the images that the contours name, inside or not by matplotlib."""
    series = dicom_files.series_of(dicom_files.volume("CT", SHAPE)) if turn == "oblique" else turned(turn)
    labels = noise(series.grid)
    structures = sent(write_rtstruct(labels, NAMES, series, "K-Prism"))
    names = {int(item.ROINumber): str(item.ROIName) for item in structures.StructureSetROISequence}
    headers = {str(header.SOPInstanceUID): header for header in series.headers}
    rows, columns = np.indices(series.grid[1::-1])
    for roi in structures.ROIContourSequence:
        found = np.zeros(series.grid, bool)
        for contour in roi.ContourSequence:
            [image] = contour.ContourImageSequence
            header = headers[image.ReferencedSOPInstanceUID]
            along, down = (np.array(header.ImageOrientationPatient[half], float) for half in (slice(3), slice(3, 6)))
            origin, spacing = np.array(header.ImagePositionPatient, float), np.array(header.PixelSpacing, float)
            corners = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(corners) == contour.NumberOfContourPoints
            steps = np.cross(along, down) @ (corners - origin).T
            assert np.abs(steps).max() < 0.01 * min(spacing), "the contour lies on the plane of its image"
            flat = np.stack([(corners - origin) @ along / spacing[1], (corners - origin) @ down / spacing[0]], axis=1)
            centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
            inside = MatplotlibPath(np.vstack([flat, flat[:1]]), closed=True).contains_points(centres)
            k = series.index()[str(image.ReferencedSOPInstanceUID), 1]
            found[:, :, k] ^= inside.reshape(rows.shape).T
        np.testing.assert_array_equal(found, labels == NAMES[names[int(roi.ReferencedROINumber)]])


def test_a_phase_keeps_its_label() -> None:
    series = dicom_files.series_of(dicom_files.phases(SHAPE, "EchoTime", ["10", "20", "30"]))
    assert series.volumes == 3
    for first in range(3):
        labels = np.zeros(series.grid, np.uint8)
        labels[2:9, 3:8, first * SHAPE[2] + 2 : first * SHAPE[2] + 5] = 1
        assert_same(sent(write_rtstruct(labels, {"liver": 1}, series, "one")), series, labels, {"liver": 1})
    labels[2:9, 3:8, 0] = 1
    assert_same(sent(write_rtstruct(labels, {"liver": 1}, series, "two")), series, labels, {"liver": 1})


def test_it_says_whose_images_it_is_drawn_on() -> None:
    images = dicom_files.volume("CT", SHAPE)
    for image in images:
        image.SpecificCharacterSet, image.PatientName, image.PatientID = "ISO_IR 144", "Иванов^Иван", "Ж-1"
        image.StudyDescription = "Брюшная полость"
    series = dicom_files.series_of([dcmread(io.BytesIO(as_bytes(image))) for image in images])
    structures = sent(write_rtstruct(noise(series.grid), NAMES, series, "Größe"))
    header = series.headers[0]
    assert structures.SpecificCharacterSet == "ISO_IR 192"
    assert (structures.PatientName, structures.PatientID) == ("Иванов^Иван", "Ж-1")
    assert (structures.StudyDescription, structures.SeriesDescription) == ("Брюшная полость", "Größe")
    assert (structures.Modality, structures.SOPClassUID) == ("RTSTRUCT", RTSTRUCT_SOP_CLASS)
    assert structures.StudyInstanceUID == header.StudyInstanceUID
    assert structures.FrameOfReferenceUID == header.FrameOfReferenceUID
    assert referenced_series(structures) == [series.uid]
    [place] = structures.ReferencedFrameOfReferenceSequence
    assert place.FrameOfReferenceUID == header.FrameOfReferenceUID
    [study] = place.RTReferencedStudySequence
    assert study.ReferencedSOPInstanceUID == header.StudyInstanceUID
    [whole] = study.RTReferencedSeriesSequence
    named = [(item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) for item in whole.ContourImageSequence]
    assert named == [(header.SOPClassUID, frame.instance) for frame in series.frames]
    assert [item.ROIName for item in structures.StructureSetROISequence] == list(NAMES)
    numbers = [1, 2, 3]
    assert [item.ROINumber for item in structures.StructureSetROISequence] == numbers
    assert [item.ReferencedROINumber for item in structures.ROIContourSequence] == numbers
    assert [item.ReferencedROINumber for item in structures.RTROIObservationsSequence] == numbers
    kinds = {contour.ContourGeometricType for roi in structures.ROIContourSequence for contour in roi.ContourSequence}
    assert kinds == {"CLOSED_PLANAR"}


def test_names_of_any_length_and_with_backslashes_come_back() -> None:
    series = turned("axial")
    names = {"x" * 80 + "1": 1, "x" * 80 + "2": 3, "left\\right": 7}
    back = read_rtstruct(sent(write_rtstruct(noise(series.grid), names, series, "K-Prism")), series)
    assert list(back.names) == list(names)


@pytest.mark.parametrize("kind", UNPLACED)
def test_images_without_positions_are_refused(kind: str) -> None:
    series = dicom_files.series_of(dicom_files.KINDS[kind]())
    with pytest.raises(RequestError, match="no position in the patient"):
        write_rtstruct(np.ones(series.grid, np.uint8), {"liver": 1}, series, "K-Prism")
    with pytest.raises(RequestError, match="no position"):
        read_rtstruct(foreign(turned("axial"), {"liver": []}), series)


def test_labels_that_cannot_be_written_are_refused() -> None:
    series = turned("axial")
    for labels, names, sentence in (
        (np.zeros(series.grid, np.uint8), {"liver": 1}, "empty"),
        (np.ones(series.grid, np.uint8), {"liver": 2}, "value 1, which has no name"),
        (np.ones((3, 4, 5), np.uint8), {"liver": 1}, "3 x 4 x 5 voxels"),
    ):
        with pytest.raises(RequestError, match=sentence):
            write_rtstruct(labels, names, series, "K-Prism")


def expected(series: Series, boxes: dict[int, list[tuple[slice, slice]]]) -> NDArray[np.bool_]:
    """A mask of rectangles (columns, rows) by slice."""
    mask = np.zeros(series.grid, bool)
    for k, parts in boxes.items():
        for columns, rows in parts:
            mask[columns, rows, k] = True
    return mask


def read(series: Series, rois: dict[str, list[Drawn]], **options: bool) -> tuple[dict[str, NDArray[np.bool_]], str]:
    """The masks by name, and the notes."""
    back = read_rtstruct(foreign(series, rois, **options), series)
    return {name: back.labels == value for name, value in back.names.items()}, " ".join(back.notes)


@pytest.mark.parametrize("turn", [*TURNS][:4])
@pytest.mark.parametrize("references", [False, True])
def test_holes_by_either_convention(turn: str, references: bool) -> None:
    series = turned(turn)
    outer, inner, island = box(0.5, 0.5, 10.5, 9.5), box(2.5, 2.5, 8.5, 7.5), box(4.5, 3.5, 6.5, 5.5)
    keyhole = [*outer, outer[0], inner[0], *inner[:0:-1], inner[0], outer[0]]
    ways: dict[str, list[Drawn]] = {
        "nested": [(outer, 3), (inner, 3), (island, 3)],
        "nested, the inner first": [(island, 3), (inner, 3), (outer, 3)],
        "xor": [(contour, 3, "CLOSEDPLANAR_XOR") for contour in (outer, inner, island)],
        "keyhole": [(keyhole, 3), (island, 3)],
        "twice": [(outer, 3), (inner, 3), (island, 3), (outer, 3)],
    }
    ring = expected(series, {3: [(slice(1, 11), slice(1, 10))]})
    ring &= ~expected(series, {3: [(slice(3, 9), slice(3, 8))]})
    ring |= expected(series, {3: [(slice(5, 7), slice(4, 6))]})
    for way, contours in ways.items():
        masks, notes = read(series, {way: contours}, references=references)
        np.testing.assert_array_equal(masks[way], ring, err_msg=way)
        assert notes == ""


def test_contours_that_overlap_in_part_are_added() -> None:
    series = turned("coronal")
    masks, notes = read(series, {"a": [(box(0.5, 0.5, 5.5, 5.5), 2), (box(3.5, 3.5, 9.5, 8.5), 2)]})
    parts = [(slice(1, 6), slice(1, 6)), (slice(4, 10), slice(4, 9))]
    np.testing.assert_array_equal(masks["a"], expected(series, {2: parts}))
    assert notes == ""


@pytest.mark.parametrize("turn", [*TURNS][:4])
def test_contours_between_images_are_drawn_on_the_nearest_and_told(turn: str) -> None:
    series = turned(turn)
    square = box(1.5, 1.5, 6.5, 5.5)
    here = (slice(2, 7), slice(2, 6))
    masks, notes = read(series, {"a": [(square, 1.3), (square, 3.7), (square, 5)]})
    np.testing.assert_array_equal(masks["a"], expected(series, {1: [here], 4: [here], 5: [here]}))
    assert notes == "Of 'a', 2 contours are between images, and drawn on the nearest."
    masks, notes = read(series, {"every second": [(square, k) for k in (0, 2, 4, 6)]})
    np.testing.assert_array_equal(masks["every second"], expected(series, {k: [here] for k in (0, 2, 4, 6)}))
    assert notes == "'every second' is on 4 of the 7 images that it spans: it has contours there only."
    dense: list[Drawn] = [(box(1.5, 1.5, 6.5 + (k % 1 > 0), 5.5), k) for k in np.arange(1, 3.1, 0.25)]
    masks, notes = read(series, {"dense": dense})
    np.testing.assert_array_equal(masks["dense"], expected(series, {1: [here], 2: [here], 3: [here]}))
    assert notes == "Of 'dense', 6 contours are left out: others are nearer to the same image."


def test_what_encloses_nothing_is_told_and_left_out() -> None:
    series = turned("sagittal")
    square = box(1.5, 1.5, 6.5, 5.5)
    masks, notes = read(
        series,
        {
            "with points": [(square, 2), ([(3, 3)], 2, "POINT"), (square, 3, "OPEN_PLANAR"), (square[:2], 4)],
            "isocentre": [([(3, 3)], 2, "POINT")],
            "nothing": [],
            "臓器": [(square, 5)],
        },
    )
    assert list(masks) == ["with points", "臓器"]
    np.testing.assert_array_equal(masks["with points"], expected(series, {2: [(slice(2, 7), slice(2, 6))]}))
    assert notes == (
        "Of 'with points', 3 contours are left out: a point, open or damaged. "
        "Of 'isocentre', 1 contour is left out: a point, open or damaged. "
        "Left out, as they have no contours: 'nothing'."
    )


def typed(structures: Dataset, types: list[str | None]) -> Dataset:
    """What each ROI is, as planning systems say it; None for one of which nothing is said."""
    structures.RTROIObservationsSequence = Sequence()
    for number, kind in enumerate(types, 1):
        if kind is not None:
            observation = Dataset()
            observation.ObservationNumber = observation.ReferencedROINumber = number
            observation.RTROIInterpretedType, observation.ROIInterpreter = kind, ""
            structures.RTROIObservationsSequence.append(observation)
    return structures


def test_what_is_drawn_for_a_treatment_is_no_structure() -> None:
    series = turned("axial")
    square, wide = box(1.5, 1.5, 6.5, 5.5), box(0.5, 0.5, 12.5, 9.5)
    rois: dict[str, list[Drawn]] = {
        "BODY": [(wide, 2)],
        "liver": [(square, 2)],
        "PTV 60": [(wide, 3)],
        "tumour": [(square, 3)],
        "couch": [(wide, 4)],
        "lung": [(square, 4)],
        "カウチ": [(wide, 5)],
        "heart": [(square, 5)],
    }
    types = ["EXTERNAL", "ORGAN", "PTV", "GTV", "SUPPORT", "", "bolus", None]
    found = read_rtstruct(sent(typed(foreign(series, rois), types)), series)
    assert list(found.names) == ["liver", "tumour", "lung", "heart"]
    for k, name in enumerate(found.names, 2):
        mask = expected(series, {k: [(slice(2, 7), slice(2, 6))]})
        np.testing.assert_array_equal(found.labels == found.names[name], mask, err_msg=name)
    assert found.notes == (
        "Left out, as they are drawn for a treatment: "
        "'BODY' (EXTERNAL), 'PTV 60' (PTV), 'couch' (SUPPORT), 'カウチ' (BOLUS).",
    )
    alone = typed(foreign(series, {"BODY": [(wide, 2)], "margin": [(square, 2)]}), ["EXTERNAL", "CTV"])
    with pytest.raises(RequestError, match=r"no closed contour.*drawn for a treatment: 'BODY' \(EXTERNAL\), 'margin'"):
        read_rtstruct(alone, series)


def test_contours_beside_the_images_are_cut_and_told() -> None:
    series = turned("axial")
    wide, far = box(9.5, 6.5, 40.5, 30.5), box(50, 50, 60, 60)
    masks, notes = read(series, {"a": [(wide, 2), (far, 3), (box(0.5, 0.5, 3.5, 3.5), 19)]})
    np.testing.assert_array_equal(masks["a"], expected(series, {2: [(slice(10, 14), slice(7, 11))]}))
    left_out, cut = "1 contour is left out: on none of the images", "2 contours are cut at the border of the images"
    assert notes == f"Of 'a', {left_out}. Of 'a', {cut}."
    with pytest.raises(RequestError, match=r"no closed contour on the images.*border of the images"):
        read(series, {"far": [(far, 3)]})


def test_contours_across_the_images_are_told() -> None:
    series, other = turned("axial"), turned("sagittal")
    structures = foreign(other, {"across": [(box(0.5, 0.5, 5.5, 4.5), 3)]})
    for item in structures.StructureSetROISequence:
        item.ReferencedFrameOfReferenceUID = series.headers[0].FrameOfReferenceUID
    with pytest.raises(RequestError, match=r"1 contour is left out: not parallel to the images"):
        read_rtstruct(structures, series)


def test_of_structures_that_overlap_the_smaller_counts() -> None:
    series = turned("coronal")
    body, liver, lesion = box(-0.5, -0.5, 13.5, 10.5), box(1.5, 1.5, 9.5, 8.5), box(3.5, 3.5, 5.5, 5.5)
    for order in (["lesion", "liver", "body"], ["body", "liver", "lesion"], ["liver", "lesion", "body"]):
        corners = {"body": body, "liver": liver, "lesion": lesion}
        masks, notes = read(series, {name: [(corners[name], 2), (corners[name], 3)] for name in order})
        both = {name: {2: [parts], 3: [parts]} for name, parts in PARTS.items()}
        whole = {name: expected(series, boxes) for name, boxes in both.items()}
        np.testing.assert_array_equal(masks["lesion"], whole["lesion"])
        np.testing.assert_array_equal(masks["liver"], whole["liver"] & ~whole["lesion"])
        np.testing.assert_array_equal(masks["body"], whole["body"] & ~whole["liver"])
        assert list(masks) == order
        for sentence in (
            "'body' is without 112 voxels that are also in 'liver': the smaller structure has them.",
            "'liver' is without 8 voxels that are also in 'lesion': the smaller structure has them.",
        ):
            assert sentence in notes


PARTS = {
    "body": (slice(0, 14), slice(0, 11)),
    "liver": (slice(2, 10), slice(2, 9)),
    "lesion": (slice(4, 6), slice(4, 6)),
}


def test_a_structure_that_others_cover_is_told_and_equal_names_are_numbered() -> None:
    series = turned("axial")
    square, half = box(0.5, 0.5, 6.5, 6.5), box(0.5, 0.5, 3.5, 6.5)
    structures = foreign(
        series, {"whole": [(square, 2)], "left": [(half, 2)], "x": [(box(3.5, 0.5, 6.5, 6.5), 2)], "y": [(half, 4)]}
    )
    structures.StructureSetROISequence[2].ROIName = "left"
    back = read_rtstruct(structures, series)
    assert list(back.names) == ["left", "left 3", "y"]
    assert (
        back.notes[-1]
        == "'whole' is left out: all of it is also in 'left', 'left 3', and a voxel can have one structure only."
    )
    np.testing.assert_array_equal(
        back.labels == back.names["left 3"], expected(series, {2: [(slice(4, 7), slice(1, 7))]})
    )


def test_contours_in_another_frame_of_reference_are_not_drawn() -> None:
    series = turned("axial")
    rois: dict[str, list[Drawn]] = {"here": [(box(0.5, 0.5, 3.5, 3.5), 2)], "there": [(box(0.5, 0.5, 3.5, 3.5), 4)]}
    structures = foreign(series, rois)
    structures.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"
    back = read_rtstruct(structures, series)
    assert list(back.names) == ["here"]
    assert back.notes == ("Of 'there', 1 contour is left out: in another frame of reference.",)
    structures = foreign(series, rois, references=True)  # they name the images, which counts more
    structures.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"
    assert list(read_rtstruct(structures, series).names) == ["here", "there"]


def test_damaged_contours_do_not_take_the_others_with_them() -> None:
    series = turned("axial")
    rois: dict[str, list[Drawn]] = {"a": [(box(0.5, 0.5, 3.5, 3.5), k) for k in (2, 3, 4)]}
    structures = foreign(series, rois)
    contours = structures.ROIContourSequence[0].ContourSequence
    contours[0].ContourData = list(contours[0].ContourData)[:-1]
    del contours[2].ContourData
    back = read_rtstruct(sent_without_meta(structures), series)
    np.testing.assert_array_equal(back.labels == 1, expected(series, {3: [(slice(1, 4), slice(1, 4))]}))
    assert back.notes == ("Of 'a', 2 contours are left out: a point, open or damaged.",)


def sent_without_meta(structures: Dataset) -> Dataset:
    """A structure set as it is read from a file, whose coordinates are text."""
    stream = io.BytesIO()
    copied = copy.deepcopy(structures)
    copied.is_little_endian, copied.is_implicit_VR = True, True
    copied.save_as(stream)
    return dcmread(io.BytesIO(stream.getvalue()), force=True)


def test_other_objects_are_no_structure_sets() -> None:
    series = turned("axial")
    labels = noise(series.grid)
    writers: dict[str, Callable[..., Dataset]] = {"SEG": write_seg, "RTSTRUCT": write_rtstruct}
    for modality, write in writers.items():
        written = write(labels, NAMES, series, "K-Prism")
        assert written.Modality == modality
        back = read_label_object(written, series)
        np.testing.assert_array_equal(back.labels == back.names["肝臓"], labels == NAMES["肝臓"])
    with pytest.raises(RequestError, match="is not an RT structure set"):
        read_rtstruct(write_seg(labels, NAMES, series, "K-Prism"), series)


@pytest.mark.parametrize("again", ["the same", "the other way round", "from another corner", "with a corner more"])
@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_that_is_there_twice_is_no_hole_in_itself(again: str, kind: str) -> None:
    series = turned("axial")
    corners = box(0.5, 0.5, 10.5, 9.5)
    twice = {
        "the same": corners,
        "the other way round": corners[::-1],
        "from another corner": [*corners[1:], corners[0]],
        "with a corner more": [corners[0], (5, 0.5), *corners[1:]],
    }[again]
    masks, notes = read(series, {"a": [(corners, 2, kind), (twice, 2, kind)]})
    np.testing.assert_array_equal(masks["a"], expected(series, {2: [(slice(1, 11), slice(1, 10))]}))
    assert notes == ""


def two_rois() -> tuple[Series, Dataset, NDArray[np.bool_], NDArray[np.bool_]]:
    """A series, a structure set with the ROIs a and b, and their masks."""
    series = turned("axial")
    first, second = box(1.5, 1.5, 6.5, 5.5), box(7.5, 1.5, 9.5, 5.5)
    structures = foreign(series, {"a": [(first, 2), (first, 3)], "b": [(second, 2)]}, references=True)
    here = (slice(2, 7), slice(2, 6))
    parts = expected(series, {2: [here], 3: [here]}), expected(series, {2: [(slice(8, 10), slice(2, 6))]})
    return series, structures, *parts


def blank_reference(structures: Dataset) -> None:
    for roi in structures.ROIContourSequence:
        for contour in roi.ContourSequence:
            contour.ContourImageSequence = Sequence([Dataset()])


def blank_observation(structures: Dataset) -> None:
    structures.RTROIObservationsSequence = Sequence([Dataset()])


def two_types(structures: Dataset) -> None:
    item = Dataset()
    item.ReferencedROINumber, item.RTROIInterpretedType = 1, ["ORGAN", "X"]
    structures.RTROIObservationsSequence = Sequence([item])


def unnumbered_roi(structures: Dataset) -> None:
    structures.StructureSetROISequence.append(Dataset())


def no_contours_of_nothing(structures: Dataset) -> None:
    structures.ROIContourSequence.append(Dataset())


@pytest.mark.parametrize(
    "change",
    [blank_reference, blank_observation, two_types, unnumbered_roi, no_contours_of_nothing],
    ids=lambda f: f.__name__,
)
def test_an_item_that_says_nothing_takes_nothing_else_along(change: Callable[[Dataset], None]) -> None:
    series, structures, first, second = two_rois()
    change(structures)
    found = read_rtstruct(sent(structures), series)
    assert (list(found.names), found.notes) == (["a", "b"], ())
    np.testing.assert_array_equal(found.labels == 1, first)
    np.testing.assert_array_equal(found.labels == 2, second)


def test_contours_of_no_roi_are_those_of_a_damaged_file() -> None:
    series, structures, _, _ = two_rois()
    del structures.ROIContourSequence[1].ReferencedROINumber
    with pytest.raises(RequestError, match="is damaged: it has contours that are of no ROI"):
        read_rtstruct(sent(structures), series)


def test_two_rois_of_one_number_are_refused() -> None:
    series, structures, _, _ = two_rois()
    structures.StructureSetROISequence[1].ROINumber = 1
    with pytest.raises(RequestError, match="two ROIs of the number 1, 'a' and 'b'"):
        read_rtstruct(sent(structures), series)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["x 3", "x", "x"], ["x 3", "x", "x 3 3"]),
        (["left\\right", "GTV^1", "a=b"], ["left\\right", "GTV^1", "a=b"]),
        (["肝\\臓", "肝\\臓", "ß"], ["肝\\臓", "肝\\臓 2", "ß"]),
    ],
)
def test_names_of_rois_that_repeat_or_hold_a_backslash(written: list[str], names: list[str]) -> None:
    series = turned("axial")
    square = box(1.5, 1.5, 6.5, 5.5)
    structures = foreign(series, {f"r{number}": [(square, number + 1)] for number in range(3)})
    for roi, name in zip(structures.StructureSetROISequence, written, strict=True):
        roi.ROIName = name
    found = read_rtstruct(sent(structures), series)
    assert list(found.names) == names
    for k, name in enumerate(names, 1):
        np.testing.assert_array_equal(
            found.labels == found.names[name], expected(series, {k: [(slice(2, 7), slice(2, 6))]}), err_msg=name
        )
