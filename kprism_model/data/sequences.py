# SPDX-License-Identifier: Apache-2.0
"""Runs of neighbouring slices in a data set, in the order in which they lie in the patient."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.slices import SliceSet

CINE_PHASES = {"scd_cardiac_mr": 20}
"""Data sets of single pictures whose names end in image numbers: phases of each slice of the heart.

Pictures whose numbers differ by this many show the same phase in the next slice.
"""

MAXIMUM_GAP = 2
"""Slices count as neighbours if at most one between them is missing."""

_IMAGE_NUMBER = re.compile(r"(\d+)$")


def slice_runs(slice_set: SliceSet) -> list[NDArray[np.int64]]:
    """The rows of each run of two or more neighbouring slices, in order of their positions."""
    series, position = _positions(slice_set)
    order = np.lexsort((position, series))
    breaks = (np.diff(series[order]) != 0) | (np.diff(position[order]) > MAXIMUM_GAP)
    runs = np.split(order, np.flatnonzero(breaks) + 1)
    return [run for run in runs if len(run) > 1]


def _positions(slice_set: SliceSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the number of its series, and its position in it, in slices."""
    phases = CINE_PHASES.get(slice_set.name)
    if phases is None:
        return slice_set.case, slice_set.number
    numbers = np.array([_image_number(name) for name in slice_set.case_names])[slice_set.case]
    keys: dict[tuple[int, int], int] = defaultdict(lambda: len(keys))
    series = [
        keys[int(patient), int(phase)] for patient, phase in zip(slice_set.patient, numbers % phases, strict=True)
    ]
    return np.array(series), numbers // phases


def _image_number(name: str) -> int:
    match = _IMAGE_NUMBER.search(name)
    if match is None:
        raise ValueError(f"the name of the case {name!r} does not end in an image number")
    return int(match[1])
