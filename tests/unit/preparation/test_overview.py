# SPDX-License-Identifier: Apache-2.0
"""The picture of prepared cases: every class has its colour, small structures are seen, odd sizes do no harm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kprism_model.preparation.overview import write_overview
from kprism_model.preparation.records import CaseRecord
from tests.unit.preparation.downloads import picture

ORANGE, GREEN = (213, 94, 0), (0, 158, 115)


def overview(folder: Path, image: NDArray[np.uint8], label: NDArray[np.uint8], classes: int = 2) -> NDArray[np.uint8]:
    picture(folder / "image.png", image)
    picture(folder / "label.png", label)
    names = {index: f"class {index}" for index in range(1, classes + 1)}
    voxels = {name: int((label == index).sum()) for index, name in names.items()}
    record = CaseRecord("case", "key", "image.png", "label.png", label.shape, (), 1, voxels)
    write_overview(folder, names, [record], seed=0)
    with Image.open(folder / "overview.png") as sheet:
        return np.asarray(sheet)


def test_outlines_lie_where_the_label_is(tmp_path: Path) -> None:
    label = np.zeros((256, 256), np.uint8)
    label[40:100, 30:200] = 1
    label[120:130, 150:250] = 2
    tile = overview(tmp_path, np.full((256, 256, 3), (200, 90, 10), np.uint8), label)[:256, :256]
    for colour, index in ((ORANGE, 1), (GREEN, 2)):
        rows, columns = np.nonzero((tile == colour).all(axis=-1))
        area = np.argwhere(label == index)
        assert (rows.min(), columns.min()) == tuple(area.min(axis=0))
        assert (rows.max(), columns.max()) == tuple(area.max(axis=0))
    assert (tile[39, 30:200] == 0).all()  # a dark rim around the outline


@pytest.mark.parametrize(("place", "size"), [((0, 0), 3), ((1500, 1900), 1), ((700, 20), 40)])
def test_small_structures_of_large_pictures_are_enlarged(tmp_path: Path, place: tuple[int, int], size: int) -> None:
    label = np.zeros((1934, 2576), np.uint8)
    label[place[0] : place[0] + size, place[1] : place[1] + size] = 2
    tile = overview(tmp_path, np.zeros((1934, 2576), np.uint8), label)[:256, :256]
    rows, columns = np.nonzero((tile == GREEN).all(axis=-1))
    assert rows.max() - rows.min() > 60 and columns.max() - columns.min() > 60


@pytest.mark.parametrize("shape", [(1, 1), (2, 900), (900, 2), (5, 5)])
def test_odd_sizes(tmp_path: Path, shape: tuple[int, int]) -> None:
    sheet = overview(tmp_path, np.full(shape, 7, np.uint8), np.ones(shape, np.uint8))
    assert (sheet[:256, :256] == ORANGE).all(axis=-1).any()


def test_colours_of_many_classes_differ(tmp_path: Path) -> None:
    sheet = overview(tmp_path, np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8), classes=117)
    boxes = [tuple(sheet[282 + place // 3 * 20 + 8, place % 3 * 352 + 8]) for place in range(117)]
    assert len(set(boxes)) == 117
    assert boxes[:2] == [ORANGE, GREEN]
