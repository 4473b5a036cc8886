# SPDX-License-Identifier: Apache-2.0
"""Contours in text files: exact masks of polygons, nested ones, several experts, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kprism_model.preparation.contours import NestedContours, contour_mask, read_contour
from kprism_model.preparation.images import Grid

GRID = Grid((8, 10))


def pixels(*rows: str) -> NDArray[np.bool_]:
    return np.array([[character == "#" for character in row] for row in rows])


def write(path: Path, points: str) -> Path:
    path.write_text(points)
    return path


def rectangle(path: Path, left: int, top: int, right: int, bottom: int) -> Path:
    """A contour around the pixels from (left, top) to (right, bottom), both included."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    shifts = [(-0.25, -0.25), (0.25, -0.25), (0.25, 0.25), (-0.25, 0.25)]
    return write(path, "\n".join(f"{x + dx} {y + dy}" for (x, y), (dx, dy) in zip(corners, shifts, strict=True)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "0.5 1.5\n5.5 1.5\n5.5 4.5\n0.5 4.5\n",
            pixels("..........", "..........", ".#####....", ".#####....", ".#####....", *[".........."] * 3),
        ),
        (
            "\ufeff4.1,0.4\r\n8.1,4.4\r\n\r\n4.1,4.4\r\n",  # a triangle with a right angle at (4.1, 4.4)
            pixels(
                "..........",
                "..........",
                ".....#....",
                ".....##...",
                ".....###..",
                *[".........."] * 3,
            ),
        ),
        (
            # An arrow, with a corner that goes inwards; its points on the edges of the picture.
            "-0.5\t-0.5\n9.5\t3.1\n-0.5\t7.5\n5.2\t3.1\n-0.5\t-0.5\n",
            pixels(
                "..........",
                "..##......",
                "....###...",
                "......####",
                ".....###..",
                "...###....",
                "..#.......",
                "..........",
            ),
        ),
    ],
)
def test_pixels_whose_centres_are_inside(tmp_path: Path, text: str, expected: NDArray[np.bool_]) -> None:
    polygon = read_contour(write(tmp_path / "a.txt", text), GRID)
    assert (contour_mask(polygon, GRID) == expected).all()
    assert (contour_mask(polygon[::-1], GRID) == expected).all()


@pytest.mark.parametrize("experts", [1, 2])
def test_the_inner_structure_lies_on_the_outer_one(tmp_path: Path, experts: int) -> None:
    outer = (rectangle(tmp_path / "d1", 1, 1, 6, 6), rectangle(tmp_path / "d2", 2, 0, 8, 5))[:experts]
    inner = (rectangle(tmp_path / "c1", 3, 3, 7, 4), rectangle(tmp_path / "c2", 4, 1, 5, 7))[:experts]
    labels = NestedContours(outer, inner, 1, 2).read(GRID)
    expected = np.zeros((8, 10), np.uint8)
    if experts == 1:
        expected[1:7, 1:7] = 1
        expected[3:5, 3:7] = 2  # column 7 is outside the disc
    else:
        expected[1:6, 2:7] = 1
        expected[3:5, 4:6] = 2
    assert (labels == expected).all()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 1\n2 2\n", "holds 2 points, expected three or more"),
        ("", "holds 0 points"),
        ("1 1\n2 2 3\n4 4\n", "line 2: '2 2 3', expected two numbers"),
        ("1 1\n2 2\n4 four\n", "line 3: '4 four', expected two numbers"),
        ("1 1\n5 9\n3 3\n", r"y from 1 to 9, which leaves its picture of 10 columns and 8 rows; are x and y swapped\?"),
        ("1 1\n5 12\n3 3\n", "y from 1 to 12, which leaves its picture of 10 columns and 8 rows$"),
        ("-3 1\n5 2\n3 3\n", "x from -3 to 5"),
        ("nan 1\n5 2\n3 3\n", "x from nan to nan"),
    ],
)
def test_other_contours_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read_contour(write(tmp_path / "cup.txt", text), GRID)
    assert "cup.txt" in str(caught.value)


@pytest.mark.parametrize("inner", [(7, 1, 8, 2), (3, 3, 3, 2)])
def test_structures_that_cannot_be_nested_are_refused(tmp_path: Path, inner: tuple[int, int, int, int]) -> None:
    label = NestedContours((rectangle(tmp_path / "d", 1, 1, 5, 5),), (rectangle(tmp_path / "c", *inner),), 1, 2)
    with pytest.raises(ValueError, match=r"wholly outside the outer one|enclose no pixel"):
        label.read(GRID)
