# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark at clinical size that could measure the wrong thing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import requests
from pydicom import dcmread

from benchmarks.enlarged_samples import COLUMN, clinical_ct, tiny_series
from benchmarks.mode_client import messages, pack, unpack
from benchmarks.waiting import Figure
from lib.api.ohif import planes
from lib.dicom.series import describe_series

GRID = (4, 3, 5)
PLANE = (3, 4)


def test_its_planes_are_those_of_the_server() -> None:
    sent = {3: np.arange(12, dtype=np.uint8).reshape(PLANE)}
    header, labels = planes.unpack(pack({"names": {"liver": 7}}, sent), GRID)
    assert header == {"names": {"liver": 7}, "planes": [3]}
    np.testing.assert_array_equal(labels.on(3), sent[3])
    header, back = unpack(planes.pack({"version": 1}, labels, [0, 3]), PLANE)
    assert header == {"version": 1, "planes": [0, 3]}
    np.testing.assert_array_equal(back[3], sent[3])
    assert not back[0].any()


@pytest.mark.parametrize("count", [1, 3])
def test_a_streamed_answer_is_read_message_by_message(count: int) -> None:
    sent = [pack({}, {k: np.full(PLANE, k, np.uint8)}) for k in range(count)]
    answer = requests.Response()
    answer.raw = io.BytesIO(b"".join(len(message).to_bytes(4, "little") + message for message in sent))
    assert list(messages(answer)) == [(message, True) for message in sent]


def test_an_answer_that_is_not_streamed_is_one_message() -> None:
    message = pack({}, {0: np.zeros(PLANE, np.uint8)})
    answer = requests.Response()
    answer.raw = io.BytesIO(message)
    assert list(messages(answer)) == [(message, False)]


def test_the_column_is_brighter_than_its_surroundings_on_every_slice() -> None:
    voxels = clinical_ct((64, 64, 6))
    inside, around = COLUMN.disc((64, 64)), COLUMN.disc((64, 64), 1.5) & ~COLUMN.disc((64, 64), 1.1)
    for k in range(6):
        assert np.median(voxels[inside, k]) > np.median(voxels[around, k]) + 50
    for click in COLUMN.clicks(9, (64, 64, 6)):
        assert inside[click.voxel[:2]] == click.inside


def test_tiny_series_are_studies_of_their_own_that_the_server_can_read() -> None:
    files = [dcmread(io.BytesIO(content)) for content in tiny_series(3)]
    assert len({file.StudyInstanceUID for file in files}) == 3
    assert describe_series(files[:1]).grid == (16, 16, 1)


def test_a_figure_in_words_and_as_a_multiple() -> None:
    assert str(Figure("a click", 0.25)) == "250 ms"
    assert str(Figure("a click", 83.21)) == "83.2 s"
    assert str(Figure("memory", 2048.4, "MiB")) == "2,048 MiB"
    assert str(Figure("first slices")) == "-"
    assert Figure("a click", 3.0).ratio(Figure("a click", 2.0)) == "1.5"
    assert Figure("memory", 3.0, reference=1.0).ratio(None) == "3.0"
    assert Figure("first slices").ratio(Figure("first slices", 2.0)) == "-"
