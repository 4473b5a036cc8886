# SPDX-License-Identifier: Apache-2.0
"""Outlines of masks and masks of outlines: exact both ways, and the same as other rasterisers say."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as MatplotlibPath
from numpy.typing import NDArray

from kprism_model.polygons import Points, filled
from lib.dicom.contours import outlines

PICTURES = {
    "one pixel": ["."] * 2 + ["..#."] + ["."],
    "one row": ["#####"],
    "everything": ["####"] * 3,
    "border": ["#..#", "....", "#.##"],
    "corners that touch": ["#.#.", ".#.#", "#.#.", "...."],
    "ring": ["#####", "#...#", "#.#.#", "#...#", "#####"],
    "ring in a ring": [
        *("#########", "#.......#", "#.#####.#", "#.#...#.#", "#.#.#.#.#"),
        *("#.#...#.#", "#.#####.#", "#.......#", "#########"),
    ],
    "holes in a row": ["#########", "#.#.#.#.#", "#########"],
    "holes that touch": ["######", "#.##.#", "##.#.#", "#.##.#", "######"],
    "hole open at a corner": ["####.", "#..##", "#.#.#", "#####"],
    "nothing": ["...", "..."],
}


def drawn(rows: list[str]) -> NDArray[np.bool_]:
    """A picture; short rows are filled up."""
    width = max(map(len, rows))
    return np.array([[letter == "#" for letter in row.ljust(width, ".")] for row in rows])


def random_masks() -> list[NDArray[np.bool_]]:
    """Noise, and blocks of noise, of many sizes."""
    random = np.random.default_rng(4)
    shapes = [tuple(random.integers(1, 16, 2)) for _ in range(300)]
    return [random.random(shape) < random.uniform(0.1, 0.9) for shape in shapes]


def crossed(polygons: list[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask by matplotlib, which knows unions only: polygon by polygon, combined by exclusive or."""
    rows, columns = np.indices(shape)
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    mask = np.zeros(shape, bool)
    for points in polygons:
        mask ^= MatplotlibPath(np.vstack([points, points[:1]]), closed=True).contains_points(centres).reshape(shape)
    return mask


def area(points: Points) -> float:
    """The area in a polygon by the shoelace formula."""
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


@pytest.mark.parametrize("name", PICTURES)
def test_the_outline_of_a_mask_gives_the_mask(name: str) -> None:
    mask = drawn(PICTURES[name])
    polygons = outlines(mask)
    np.testing.assert_array_equal(filled(polygons, mask.shape), mask)
    np.testing.assert_array_equal(crossed(polygons, mask.shape), mask)
    assert sum(map(area, polygons)) == mask.sum()


def test_outlines_of_noise_give_the_noise_and_each_polygon_stands_for_itself() -> None:
    for mask in random_masks():
        polygons = outlines(mask)
        alone = [filled([points], mask.shape).astype(int) for points in polygons]
        np.testing.assert_array_equal(sum(alone, np.zeros(mask.shape, int)), mask)
        assert sum(map(area, polygons)) == mask.sum()
        for points in polygons:
            step = np.roll(points, -1, axis=0) - points
            assert ((step == 0).sum(axis=1) == 1).all(), "edges of pixels are straight, and no point comes twice"


def test_a_ring_is_one_polygon_with_a_keyhole_and_diagonal_pixels_are_several() -> None:
    assert len(outlines(drawn(PICTURES["ring"]))) == 2  # the ring, and the pixel in it
    assert len(outlines(drawn(PICTURES["holes in a row"]))) == 1
    assert len(outlines(drawn(PICTURES["corners that touch"]))) == 6
    [square] = outlines(drawn([".....", ".###.", ".###."]))
    np.testing.assert_array_equal(square, [[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]])


def test_any_polygon_is_filled_as_matplotlib_fills_it() -> None:
    random = np.random.default_rng(8)
    for corners in (3, 4, 7, 30):
        for _ in range(40):
            angles = np.sort(random.uniform(0, 2 * np.pi, corners))
            radius = random.uniform(2, 14, corners)  # stars, which reach beyond the picture
            points = np.stack([8 + radius * np.cos(angles), 11 + radius * np.sin(angles)], axis=1)
            np.testing.assert_array_equal(filled([points], (21, 17)), crossed([points], (21, 17)))
            np.testing.assert_array_equal(filled([points[::-1]], (21, 17)), crossed([points], (21, 17)))


def test_a_centre_on_an_edge_belongs_to_one_of_two_neighbours() -> None:
    left = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    right = left + np.array([3.0, 0.0])
    both = filled([left], (6, 8)).astype(int) + filled([right], (6, 8))
    assert both.max() == 1 and both.sum() == 6 * 4
