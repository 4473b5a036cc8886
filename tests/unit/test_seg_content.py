# SPDX-License-Identifier: Apache-2.0
"""What is stored in a DICOM SEG: the same as if highdicom got all pixels of a series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from highdicom.seg import Segmentation
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom import seg_writer
from lib.dicom.seg_reader import read_seg
from lib.dicom.series import Series
from tests.unit import dicom_files

NAMES = {"liver": 3, "left kidney": 1, "absent": 9, "spleen": 200}
NEW = ("SOPInstanceUID", "SeriesInstanceUID")
"""Identifiers of a segmentation, which no two have in common."""
NEW_INSIDE = ("TrackingUID", "DimensionOrganizationUID", "ContentTime", "ContentDate", "SeriesTime", "SeriesDate")


def everywhere(grid: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Structures in every slice, whose edges are each other's."""
    return np.random.default_rng(1).choice(np.array([0, 1, 3, 200], np.uint8), grid)


def some_slices(grid: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One structure, and slices without any: the first, and the one after the middle."""
    labels = np.zeros(grid, np.uint8, order="F")
    labels[1:4, 2:, 1:] = 200
    labels[:, :, grid[2] // 2 + 1 :][..., :1] = 0
    labels[2, 3, -1] = 200
    return labels


def one_voxel(grid: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The last voxel of the last slice."""
    labels = np.zeros(grid, np.uint8)
    labels[-1, -1, -1] = 1
    return labels


def one_slice(grid: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Two structures side by side in the first slice."""
    labels = np.zeros(grid, np.uint8)
    labels[:3, :, 0], labels[3:5, :, 0] = 1, 3
    return labels


LABELS = (everywhere, some_slices, one_voxel, one_slice)
SERIES: dict[str, Callable[[], list[Dataset]]] = dicom_files.KINDS | {
    "odd size": lambda: dicom_files.volume(shape=(7, 5, 11)),
    "odd size, multi-frame": lambda: dicom_files.enhanced(shape=(7, 5, 11)),
    "phases": lambda: dicom_files.phases((7, 5, 3), "EchoNumbers", [1, 2, 3]),
    "one column": lambda: dicom_files.volume(shape=(5, 1, 4)),
}


def by_highdicom(
    labels: NDArray[np.uint8], series: Series, monkeypatch: pytest.MonkeyPatch
) -> tuple[Dataset, NDArray[np.uint8]]:
    """The segmentation that the writer makes if highdicom gets every pixel of the images; and these pixels."""
    present = [value for value in NAMES.values() if (labels == value).any()]
    table = np.zeros(256, np.uint8)
    table[present] = range(1, len(present) + 1)
    index = series.index()

    def whole(source_images: list[Dataset], pixel_array: NDArray[np.uint8], **others: Any) -> Segmentation:
        order = []
        for number, image in enumerate(source_images):  # one for each slice, also those that stand in for frames
            image.Columns, image.Rows = series.grid[:2]
            order.append(index.get((str(image.SOPInstanceUID), 1), number))
        pixels = table[labels[:, :, order].transpose(2, 1, 0)]
        return Segmentation(source_images=source_images, pixel_array=pixels, **others)

    with monkeypatch.context() as changed:
        changed.setattr(seg_writer, "Segmentation", whole)
        changed.setattr(seg_writer, "_put_pixels", lambda *_: None)
        segmentation = seg_writer.write_seg(labels, NAMES, series, "K-Prism", "K-Prism")
    return segmentation, np.asarray(segmentation.pixel_array)


def comparable(segmentation: Dataset) -> dict[str, Any]:
    """All of a segmentation but its pixels, its own identifiers and its time."""
    copy = Dataset.from_json(segmentation.to_json_dict())
    for name in (*NEW, "PixelData"):
        delattr(copy, name)

    def remove(dataset: Dataset, element: Any) -> None:
        if element.keyword in NEW_INSIDE:
            del dataset[element.tag]

    copy.walk(remove)
    return dict(copy.to_json_dict())


@pytest.mark.parametrize("make", LABELS)
@pytest.mark.parametrize("kind", SERIES)
def test_a_segmentation_is_what_highdicom_makes_of_all_pixels(
    kind: str, make: Callable[[tuple[int, int, int]], NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    series = dicom_files.series_of(SERIES[kind]())
    labels = make(series.grid)
    expected, pixels = by_highdicom(labels, series, monkeypatch)
    written = seg_writer.write_seg(labels, NAMES, series, "K-Prism", "K-Prism")
    assert comparable(written) == comparable(expected)
    np.testing.assert_array_equal(written.pixel_array, pixels)
    assert len(written.PixelData) == len(expected.PixelData)
    assert int.from_bytes(written.PixelData, "little") < 1 << pixels.size  # what fills the last byte is zero
    back = read_seg(written, series)
    for name, value in back.names.items():
        np.testing.assert_array_equal(back.labels == value, labels == NAMES[name])


@pytest.mark.parametrize("kind", SERIES)
def test_the_headers_of_a_series_stay_as_they_are(kind: str) -> None:
    series = dicom_files.series_of(SERIES[kind]())
    before = [header.to_json() for header in series.headers]
    seg_writer.write_seg(everywhere(series.grid), NAMES, series, "K-Prism")
    assert [header.to_json() for header in series.headers] == before


def test_of_two_names_with_one_value_the_last_has_the_voxels() -> None:
    series = dicom_files.series_of(dicom_files.volume())
    labels = one_slice(series.grid)
    written = seg_writer.write_seg(labels, {"left": 1, "right": 1, "liver": 3}, series, "K-Prism")
    back = read_seg(written, series)
    assert list(back.names) == ["left", "right", "liver"]
    np.testing.assert_array_equal(back.labels, np.array([0, 2, 0, 3], np.uint8)[labels])
