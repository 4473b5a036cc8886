# SPDX-License-Identifier: Apache-2.0
"""Odd images in a series: they are set aside and said, and the others are a volume with positions, voxel by voxel."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from lib.dicom.datastore import DicomStore
from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series, describe_series
from lib.dicom.series_headers import SeriesHeaders
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from lib.learning.strategies import make_strategies
from tests.unit import dicom_files
from tests.unit.dicom_arrivals import MemoryStore, arriving, items_of
from tests.unit.dicom_server import MemoryServer

SHAPE = (12, 10, 6)
TURN = [0, 1, 0, 0, 0, -1]


def another(image: Dataset, **changes: Any) -> Dataset:
    """A further image in the series of `image`."""
    more = copy.deepcopy(image)
    more.SOPInstanceUID = more.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for name, value in changes.items():
        setattr(more, name, value)
    return more


def resized(image: Dataset, columns: int, rows: int, **changes: Any) -> Dataset:
    more = another(image, Columns=columns, Rows=rows, **changes)
    more.PixelData = np.full((rows, columns), 7, np.int16).tobytes()
    return more


def coloured(image: Dataset) -> Dataset:
    """A report as a picture, as large as the slices."""
    more = another(image, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    more.BitsAllocated = more.BitsStored = 8
    more.HighBit, more.PixelRepresentation = 7, 0
    del more.ImagePositionPatient, more.ImageOrientationPatient
    more.PixelData = bytes(3 * image.Rows * image.Columns)
    return more


def without(image: Dataset, *names: str) -> Dataset:
    more = another(image)
    for name in names:
        delattr(more, name)
    return more


ADDED: dict[str, tuple[Callable[[list[Dataset]], list[Dataset]], str]] = {
    "localizer of another size": (
        lambda images: [resized(images[0], 128, 128, ImageOrientationPatient=TURN, InstanceNumber=0)],
        "it has 128 x 128 grey pixels; the others have 12 x 10 grey pixels",
    ),
    "another size, same plane": (
        lambda images: [resized(images[0], 10, 12)],
        "it has 10 x 12 grey pixels; the others have 12 x 10 grey pixels",
    ),
    "localizer of the same size": (
        lambda images: [another(images[0], ImageOrientationPatient=TURN, InstanceNumber=0)],
        "it lies in another plane than the others",
    ),
    "localizer with pixels of another size": (
        lambda images: [another(images[2], PixelSpacing=[4, 4], InstanceNumber=0)],
        "its pixels have another size in millimetres than those of the others",
    ),
    "two localizers, two planes": (
        lambda images: [another(images[0], ImageOrientationPatient=turn) for turn in (TURN, [0, 0, 1, 1, 0, 0])],
        "it lies in another plane than the others",
    ),
    "a slice sent twice": (
        lambda images: [another(images[4], InstanceNumber=99)],
        "it shows a place in the patient that another image shows already",
    ),
    "two slices sent three times": (
        lambda images: [another(images[row], InstanceNumber=90 + n) for n in range(2) for row in (1, 3)],
        "it shows a place in the patient that another image shows already",
    ),
    "no position": (
        lambda images: [without(images[1], "ImagePositionPatient")],
        "it has no position in the patient",
    ),
    "no orientation": (
        lambda images: [without(images[1], "ImageOrientationPatient")],
        "it has no position in the patient",
    ),
    "an empty position": (
        lambda images: [another(images[1], ImagePositionPatient=None)],
        "it has no position in the patient",
    ),
    "directions without a length": (
        lambda images: [another(images[1], ImageOrientationPatient=[0, 0, 0, 0, 0, 0])],
        "it has no position in the patient",
    ),
    "two numbers for a position": (
        lambda images: [another(images[1], ImagePositionPatient=[1, 2])],
        "it has no position in the patient",
    ),
    "a report in colour": (
        lambda images: [coloured(images[0])],
        "it has 12 x 10 coloured pixels; the others have 12 x 10 grey pixels",
    ),
    "no rows": (
        lambda images: [another(images[0], Rows=0)],
        "its header does not say how many pixels it has",
    ),
}


@pytest.mark.parametrize("kind", ADDED)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_the_odd_image_is_set_aside_and_the_rest_is_placed(kind: str, first: bool, tmp_path: Path) -> None:
    """Image, label and segmentation are those of the series without it, wherever it is in the list."""
    make, reason = ADDED[kind]
    usual = dicom_files.volume()
    odd = make(usual)
    instances = [*odd, *usual] if first else [*usual, *odd]
    whole = describe_series(usual)
    volume = arriving(MemoryStore(instances), tmp_path / "odd")
    series = volume.series
    assert [(frame.instance, frame.number) for frame in series.frames] == [(f.instance, f.number) for f in whole.frames]
    np.testing.assert_array_equal(series.affine, whole.affine)
    assert (series.grid, series.positioned, series.volumes) == (SHAPE, True, 1)
    assert {(entry.instance, entry.reason) for entry in series.aside} == {(str(x.SOPInstanceUID), reason) for x in odd}
    count = "1 image is" if len(odd) == 1 else f"{len(odd)} images are"
    assert series.warnings == (f"{count} set aside, not segmented: {reason}.",)
    volume.complete()
    plain = arriving(MemoryStore(usual), tmp_path / "plain")
    plain.complete()
    np.testing.assert_array_equal(volume.image("odd").array, plain.image("plain").array)
    assert_placed(series, usual)


def assert_placed(series: Series, usual: list[Dataset]) -> None:
    """A segmentation of the series has the positions and the frame of reference of the images."""
    labels = np.random.default_rng(0).integers(0, 3, series.grid).astype(np.uint8)
    stored = dcmread(io.BytesIO(as_bytes(write_seg(labels, {"liver": 1, "spleen": 2}, series, "K-Prism"))))
    images = {str(image.SOPInstanceUID): image for image in usual}
    assert stored.FrameOfReferenceUID == usual[0].FrameOfReferenceUID
    masks = stored.pixel_array.reshape(-1, stored.Rows, stored.Columns)
    places = series.index()
    for group, mask in zip(stored.PerFrameFunctionalGroupsSequence, masks, strict=True):
        uid = str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        position = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, images[uid].ImagePositionPatient, atol=1e-6)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(mask.T, labels[:, :, places[uid, 1]] == number)
    np.testing.assert_array_equal(read_seg(stored, series).labels, labels)


@pytest.mark.parametrize("labelled", [1, 2, 3], ids=lambda count: f"{count} phases")
def test_a_segmentation_of_several_phases_has_positions(labelled: int) -> None:
    """Also if frames are at one position at several times."""
    instances = dicom_files.phases((7, 5, 3), "TriggerTime", [0.0, 40.0, 80.0])
    series = describe_series(instances)
    labels = np.zeros(series.grid, np.uint8)
    labels[2:5, 1:4, : 3 * labelled] = 1
    stored = write_seg(labels, {"heart": 1}, series, "K-Prism")
    images = {str(image.SOPInstanceUID): image for image in instances}
    assert stored.FrameOfReferenceUID == instances[0].FrameOfReferenceUID
    assert len(stored.PerFrameFunctionalGroupsSequence) == 3 * labelled
    for group in stored.PerFrameFunctionalGroupsSequence:
        image = images[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        np.testing.assert_allclose(group.PlanePositionSequence[0].ImagePositionPatient, image.ImagePositionPatient)
    indices = [tuple(g.FrameContentSequence[0].DimensionIndexValues) for g in stored.PerFrameFunctionalGroupsSequence]
    assert len(set(indices)) == len(indices)
    np.testing.assert_array_equal(read_seg(stored, series).labels, labels)


def clips() -> list[Dataset]:
    """Two films of ultrasound in one series, the second one longer."""
    short, long = dicom_files.cine(3)[0], dicom_files.cine(5)[0]
    long.SeriesInstanceUID, long.StudyInstanceUID, long.InstanceNumber = (
        short.SeriesInstanceUID,
        short.StudyInstanceUID,
        2,
    )
    return [short, long]


def two_stacks() -> list[Dataset]:
    """A volume in two multi-frame images."""
    first, second = dicom_files.enhanced()[0], dicom_files.enhanced()[0]
    for image, part in ((first, slice(0, 4)), (second, slice(4, 6))):
        groups = image.PerFrameFunctionalGroupsSequence[part]
        image.PerFrameFunctionalGroupsSequence, image.NumberOfFrames = groups, len(groups)
        size = 2 * image.Rows * image.Columns
        image.PixelData = image.PixelData[part.start * size : part.stop * size]
    return [first, second]


def unplaced_frame() -> list[Dataset]:
    """A multi-frame image with a frame that has no position."""
    [image] = dicom_files.enhanced()
    del image.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    return [image]


FRAMES: dict[str, Callable[[], list[Dataset]]] = {
    "two films": clips,
    "a volume in two images": two_stacks,
    "a frame without a position": unplaced_frame,
    "enhanced": dicom_files.enhanced,
    "a film": dicom_files.cine,
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_segmentation_refers_to_the_frames_of_multi_frame_images(kind: str, tmp_path: Path) -> None:
    instances = FRAMES[kind]()
    volume = arriving(MemoryStore(instances), tmp_path)
    series = volume.series
    volume.complete()
    array = volume.image("it").array
    images = {str(image.SOPInstanceUID): image for image in instances}
    for k, frame in enumerate(series.frames):
        plane = images[frame.instance].pixel_array.reshape(-1, *array.shape[1::-1])[frame.number - 1]
        np.testing.assert_array_equal(array[:, :, k].T, plane)
    labels = np.random.default_rng(0).integers(0, 3, series.grid).astype(np.uint8)
    stored = dcmread(io.BytesIO(as_bytes(write_seg(labels, {"a": 1, "b": 2}, series, "K-Prism"))))
    masks = stored.pixel_array.reshape(-1, stored.Rows, stored.Columns)
    places, seen = series.index(), set()
    for group, mask in zip(stored.PerFrameFunctionalGroupsSequence, masks, strict=True):
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        key = str(source.ReferencedSOPInstanceUID), int(source.ReferencedFrameNumber)
        assert source.ReferencedSOPClassUID == images[key[0]].SOPClassUID
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(mask.T, labels[:, :, places[key]] == number)
        seen.add(key)
        if series.positioned:
            position = images[key[0]].PerFrameFunctionalGroupsSequence[key[1] - 1].PlanePositionSequence[0]
            np.testing.assert_allclose(
                group.PlanePositionSequence[0].ImagePositionPatient, position.ImagePositionPatient
            )
    assert seen == set(places)
    assert ("FrameOfReferenceUID" in stored) == series.positioned
    np.testing.assert_array_equal(read_seg(stored, series).labels, labels)


GARBAGE: dict[str, dict[str, Any]] = {
    "InstanceNumber": {"vr": "IS", "Value": ["abc"]},
    "ImagePositionPatient": {"vr": "DS", "Value": ["x", "y", "z"]},
    "ImageOrientationPatient": {"vr": "DS", "Value": [None, 0, 0, 0, 1, 0]},
    "PixelSpacing": {"vr": "DS", "Value": ["1,5", "1,5"]},
    "RescaleSlope": {"vr": "DS", "Value": ["one"]},
    "SliceThickness": {"vr": "DS", "Value": ["NaN"]},
    "NumberOfFrames": {"vr": "IS", "Value": ["many"]},
    "PatientBirthDate": {"vr": "DA", "Value": ["1.4.1950"]},
    "StudyDate": {"vr": "DA", "Value": ["yesterday"]},
    "StudyTime": {"vr": "TM", "Value": ["noon"]},
    "PatientSex": {"vr": "CS", "Value": ["W"]},
    "SOPClassUID": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
}


@pytest.mark.parametrize("keyword", GARBAGE)
@pytest.mark.parametrize("where", ["one image", "all images"])
def test_a_value_that_is_none_of_its_type_takes_nothing_else_along(keyword: str, where: str, tmp_path: Path) -> None:
    from pydicom.datadict import tag_for_keyword

    instances = dicom_files.volume()
    items = items_of(instances)
    for item in items[2:3] if where == "one image" else items:
        item[f"{tag_for_keyword(keyword):08X}"] = GARBAGE[keyword]
    headers = SeriesHeaders.of(items, len(items))
    headers.write(tmp_path)
    series, kind = headers.describe(tmp_path)
    is_odd = keyword in ("ImagePositionPatient", "ImageOrientationPatient")
    assert series.grid[2] == (5 if is_odd and where == "one image" else 6)
    assert series.positioned != (is_odd and where == "all images")
    assert kind.dtype == np.int16
    labels = np.ones(series.grid, np.uint8)
    stored = write_seg(labels, {"liver": 1}, series, "K-Prism")
    np.testing.assert_array_equal(read_seg(dcmread(io.BytesIO(as_bytes(stored))), series).labels, labels)


def test_images_of_several_frames_of_reference_can_be_segmented() -> None:
    instances = dicom_files.volume()
    for instance in instances:
        instance.FrameOfReferenceUID = generate_uid()
    series = describe_series(instances)
    labels = np.ones(series.grid, np.uint8)
    stored = write_seg(labels, {"liver": 1}, series, "K-Prism")
    np.testing.assert_array_equal(read_seg(stored, series).labels, labels)


def unusable_sizes() -> list[Dataset]:
    images = dicom_files.volume()
    for image in images:
        image.Rows = 0
    return images


def unreadable() -> list[Dataset]:
    images = dicom_files.volume()
    images[3].PixelData = b"\0\0"
    return images


def too_many_frames() -> list[Dataset]:
    [image] = dicom_files.cine()
    image.NumberOfFrames = 10**9
    return [image]


UNUSABLE: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "no sizes": (unusable_sizes, "has no image that can be used: its header does not say how many pixels it has"),
    "pixels that are missing": (unreadable, "it has 2 bytes of pixels, its header says 240"),
    "a number of frames that is none": (too_many_frames, "has no image that can be used"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_series_of_which_nothing_can_be_used_is_listed_apart(kind: str, tmp_path: Path) -> None:
    make, reason = UNUSABLE[kind]
    bad, good = make(), dicom_files.volume(name="good")
    store = DicomStore(MemoryServer([*bad, *good]), tmp_path)
    image, other = str(bad[0].SeriesInstanceUID), str(good[0].SeriesInstanceUID)
    strategies = make_strategies()
    for name in [*strategies] * 6:
        assert strategies[name]({}, store) == {"id": other}
    assert store.list_images() == [other]
    assert (store.status()["total"], store.get_unlabeled_images()) == (1, [other])
    [entry] = store.not_served()
    assert image in entry.name and reason in entry.reason
    with pytest.raises(RequestError, match=reason):
        store.get_image_uri(image)


def test_images_that_are_set_aside_are_listed_with_their_series(tmp_path: Path) -> None:
    usual = dicom_files.volume()
    odd = ADDED["localizer of another size"][0](usual) + ADDED["a slice sent twice"][0](usual)
    server = MemoryServer([*odd, *usual])
    store = DicomStore(server, tmp_path)
    image = str(usual[0].SeriesInstanceUID)
    assert store.not_served() == []  # nobody has looked at it
    store.open_series(image)
    expected = {
        (f"1 of the images of series {image} of patient case", ADDED["localizer of another size"][1]),
        (f"1 of the images of series {image} of patient case", ADDED["a slice sent twice"][1]),
    }
    assert set(store.not_served()) == expected
    assert set(DicomStore(server, tmp_path).not_served()) == expected  # also after a restart
    assert store.list_images() == [image]


def test_a_series_that_an_earlier_version_kept_with_odd_images_is_opened_anew(tmp_path: Path) -> None:
    """Its local label is on a grid with one slice more."""
    usual = dicom_files.volume()
    server = MemoryServer([*usual, another(usual[4], InstanceNumber=99)])
    store = DicomStore(server, tmp_path)
    image = str(usual[0].SeriesInstanceUID)
    store.open_series(image)
    store._datastore.objects[image].image.info["layout"] = 3
    (tmp_path / f"{image}.nii").write_bytes(b"of seven slices")
    assert store.open_series(image).grid == SHAPE
    assert not (tmp_path / f"{image}.nii").exists()
    assert Path(store.get_image_uri(image)).stat().st_size > 352
