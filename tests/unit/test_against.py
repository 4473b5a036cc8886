# SPDX-License-Identifier: Apache-2.0
"""How the lines of two benchmarks are told apart and compared."""

from __future__ import annotations

from benchmarks.against import Figures, collect, table


def test_rows_are_told_apart_by_their_first_cell() -> None:
    """Numbers in it, such as a picture's size, belong to its name."""
    before: Figures = {}
    after: Figures = {}
    for figures, times in ((before, (10, 200)), (after, (5, 300))):
        collect(f"| | ms |\n|---|---|\n| click, 512 x 512 | {times[0]} |\n| click, 64 x 64 x 9 | {times[1]} |", figures)
    assert table(before, after).splitlines()[2:] == [
        "| click, 512 x 512 | 10 | 5 | 0.50 |",
        "| click, 64 x 64 x 9 | 200 | 300 | 1.50 |",
    ]


def test_a_plain_line_is_named_by_its_text_before_the_first_number() -> None:
    figures: Figures = {}
    for round_ in (1.5, 2.5):
        collect(f"step: {round_} s\nnothing", figures)
    assert figures == {"step": [[1.5], [2.5]]}
