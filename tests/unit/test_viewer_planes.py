# SPDX-License-Identifier: Apache-2.0
"""Masks between browser and server, and the files that browsers may have."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException

from kprism_model.volumes.slice_map import SliceMap
from lib.api.ohif.cases import overlay, planes_across
from lib.api.ohif.files import serve
from lib.api.ohif.planes import pack, unpack
from lib.errors import RequestError
from lib.imaging.medical_image import planes_of
from tests.unit import dicom_files

GRID = (4, 3, 5)


def some_labels() -> SliceMap[np.uint8]:
    labels = np.zeros(GRID, np.uint8)
    labels[1, 2, 0], labels[3, 0, 4] = 7, 9
    return SliceMap.of(labels, planes_of(GRID))


def test_planes_come_back_where_they_were() -> None:
    labels = some_labels()
    message = pack({"names": {"liver": 7}}, labels, labels.filled)
    header, back = unpack(message, GRID)
    assert header == {"names": {"liver": 7}, "planes": [0, 4]}
    np.testing.assert_array_equal(back.volume(), labels.volume())


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_values_come_back_in_any_order_of_planes(order: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 6)).astype(np.uint8).copy(order=order)
    labels = SliceMap.of(values, planes_of(values.shape))
    header, back = unpack(pack({"version": "ü"}, labels, [4, 0, 3]), values.shape)
    assert header == {"version": "ü", "planes": [4, 0, 3]}
    values[:, :, [1, 2, 5]] = 0
    np.testing.assert_array_equal(back.volume(), values)
    assert gzip.decompress(pack({}, labels, [])) == b'\x0e\0\0\0{"planes": []}'


def test_the_column_is_the_fastest_axis() -> None:
    content = gzip.decompress(pack({}, some_labels(), [0]))
    assert content[-12:] == bytes([0] * 9 + [7, 0, 0])  # the second of four columns in the third row


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"nonsense", "the planes are not gzip"),
        (gzip.compress(b"\x02\0\0\0{}"), "no JSON header"),
        (gzip.compress(b"\x0e\0\0\0" + b'{"planes":[9]}' + bytes(12)), "do not fit 4 x 3 x 5"),
        (gzip.compress(b"\x0e\0\0\0" + b'{"planes":[0]}' + bytes(11)), "do not fit 4 x 3 x 5"),
        (gzip.compress(b"\x10\0\0\0" + b'{"planes":[0,0]}' + bytes(24)), "do not fit 4 x 3 x 5"),
        (gzip.compress(b"\xff\xff\xff\xff" + b'{"planes":[0]}' + bytes(2 << 20)), "no JSON header"),
        (gzip.compress(b"\x0e\0\0\0" + b'{"planes":[0]}' + bytes(12))[:-1], "the planes are not gzip"),
        (gzip.compress(b"\x0e\0\0\0" + b'{"planes":[0]}' + bytes(12))[:-8] + bytes(8), "the planes are not gzip"),
        (b"", "no JSON header"),
    ],
    ids=[  # gzip's bytes hold the time
        *("no gzip", "no JSON", "plane outside", "too short", "plane twice"),
        *("long header", "cut off", "damaged", "nothing"),
    ],
)
def test_what_does_not_fit_is_refused(message: bytes, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        unpack(message, GRID)


def test_a_message_is_inflated_only_as_far_as_the_grid_allows() -> None:
    bomb = gzip.compress(b"\x0e\0\0\0" + b'{"planes":[0]}' + bytes(64 << 20))
    with pytest.raises(RequestError, match="do not fit"):
        unpack(bomb, GRID)


def test_files_outside_of_the_folder_are_not_served(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("start")
    (folder / "app.bundle.0f61.js").write_text("")
    (tmp_path / "secret.txt").write_text("no")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert serve(folder, "").path == folder / "index.html"
    assert serve(folder, "app.bundle.0f61.js").headers["cache-control"].endswith("immutable")
    assert serve(folder, "kprism", "index.html").path == folder / "index.html"
    for path in ("../secret.txt", "link.txt", "missing.js"):
        with pytest.raises(HTTPException):
            serve(folder, path, "index.html")


def test_an_overlay_is_half_the_picture_and_half_the_colour() -> None:
    picture = overlay(np.array([[0.0, 1.0]], np.float32), np.array([[2, 0]], np.uint8), {2: (200, 100, 0)})
    np.testing.assert_array_equal(picture, [[[100, 50, 0], [255, 255, 255]]])


@pytest.mark.parametrize(
    ("directions", "planes"),
    [
        ([1, 0, 0, 0, 1, 0], ["sagittal", "coronal", "axial"]),
        ([0, 1, 0, 0, 0, -1], ["coronal", "axial", "sagittal"]),
        ([1, 0, 0, 0, 0, -1], ["sagittal", "axial", "coronal"]),
        ([0.8, 0.6, 0, 0, 0, -1], ["sagittal", "axial", "coronal"]),
    ],
)
def test_the_planes_across_the_axes_of_a_series_have_names(directions: list[float], planes: list[str]) -> None:
    instances = dicom_files.volume()
    normal = np.cross(directions[:3], directions[3:])
    for number, instance in enumerate(instances):
        instance.ImageOrientationPatient = directions
        instance.ImagePositionPatient = [round(float(x), 4) for x in normal * number]
    assert planes_across(dicom_files.series_of(instances)) == planes
