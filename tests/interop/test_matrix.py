# SPDX-License-Identifier: Apache-2.0
"""Every combination of the matrix: what we read, where clicks land and where masks lie, against other programs."""

from __future__ import annotations

import pytest

from tests.interop import matrix

SIZES = {
    "orientations, data types, slopes": 816,
    "two places in a NIfTI header": 196,
    "NIfTI of other than three axes": 80,
    "NRRD spaces": 53,
}
"""Combinations of each group."""


@pytest.mark.parametrize("group", SIZES)
def test_no_combination_fails(group: str) -> None:
    combinations = list(matrix.GROUPS[group]())
    assert len({combination.name for combination in combinations}) == SIZES[group]
    assert matrix.failures(combinations) == {}


def test_every_group_is_counted() -> None:
    assert set(SIZES) == set(matrix.GROUPS)
