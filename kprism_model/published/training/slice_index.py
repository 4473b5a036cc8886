# SPDX-License-Identifier: Apache-2.0
"""Which slices of a data set show which class, and which slices can be a reference for which: arrays for fast draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.slices import SliceSet

DEPTH_REACH = 2
"""A reference lies at most this many slices from the same relative depth, if one there shows the class (published)."""


@dataclass(frozen=True)
class _Shown:
    """The slices that show one class, by patient and case: those of case i are rows[starts[i] : starts[i + 1]].

    patients: (cases,) in ascending order.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    patients: NDArray[np.int64]


class SliceIndex:
    """Draws from one data set: a slice, a class that it shows, and a reference slice of another patient.

    shown: (n, classes) whether a slice shows a class. with_reference: the same for classes that two patients or more
    show, so that there is a reference.
    """

    def __init__(self, slice_set: SliceSet) -> None:
        self.slice_set = slice_set
        self.shown: NDArray[np.bool_] = slice_set.pixels > 0
        patient = slice_set.patient
        self._patient = patient
        self._classes = [self._of_class(column, patient) for column in range(self.shown.shape[1])]
        several = [len(np.unique(shown.patients)) > 1 for shown in self._classes]
        self.with_reference: NDArray[np.bool_] = self.shown & np.array(several, dtype=bool)
        self._rows = {False: np.flatnonzero(self.shown.any(1)), True: np.flatnonzero(self.with_reference.any(1))}
        cases = len(slice_set.case_names)
        self._first = np.full(cases, np.iinfo(np.int64).max)
        self._last = np.full(cases, -1)
        rows = self._rows[False]
        np.minimum.at(self._first, slice_set.case[rows], slice_set.number[rows])
        np.maximum.at(self._last, slice_set.case[rows], slice_set.number[rows])

    def count(self, with_reference: bool) -> int:
        """Slices that show a class, or a class for which there is a reference."""
        return len(self._rows[with_reference])

    def draw(self, rng: np.random.Generator, with_reference: bool) -> tuple[int, int]:
        """A slice and the column of a class that it shows, each with equal chances."""
        rows = self._rows[with_reference]
        row = int(rows[rng.integers(len(rows))])
        columns = np.flatnonzero((self.with_reference if with_reference else self.shown)[row])
        return row, int(columns[rng.integers(len(columns))])

    def draw_reference(self, row: int, column: int, rng: np.random.Generator) -> int:
        """A slice of another patient that shows the class: near the same relative depth if there is one, else any.

        The depth is that among the slices of a case that show any class.
        """
        shown = self._classes[column]
        own = self._patient[row]
        left, right = np.searchsorted(shown.patients, own), np.searchsorted(shown.patients, own, side="right")
        case = int(rng.integers(len(shown.patients) - (right - left)))
        case += int(right - left) if case >= left else 0
        rows = shown.rows[shown.starts[case] : shown.starts[case + 1]]
        near = rows[np.abs(self.slice_set.number[rows] - self._same_depth(row, int(rows[0]))) <= DEPTH_REACH]
        chosen = near if len(near) else rows
        return int(chosen[rng.integers(len(chosen))])

    def _same_depth(self, row: int, other: int) -> int:
        """The slice number in the case of `other` that is as deep in it as `row` is in its own case."""
        case, there = self.slice_set.case[row], self.slice_set.case[other]
        depth = (self.slice_set.number[row] - self._first[case]) / max(1, self._last[case] - self._first[case])
        return int(np.rint(self._first[there] + depth * (self._last[there] - self._first[there])))

    def _of_class(self, column: int, patient: NDArray[np.int64]) -> _Shown:
        rows = np.flatnonzero(self.shown[:, column])
        case = self.slice_set.case[rows]
        order = np.lexsort((rows, case, patient[rows]))
        rows, case = rows[order], case[order]
        starts = np.flatnonzero(np.diff(case, prepend=-1))
        return _Shown(rows, np.append(starts, len(rows)), patient[rows[starts]])
