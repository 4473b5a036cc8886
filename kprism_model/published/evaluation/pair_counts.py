# SPDX-License-Identifier: Apache-2.0
"""Pixel counts of all measured masks of a data set, and the figures that every reading of the protocol makes of them.

A pair is one structure in one slice. Counts are all that is kept of a mask, and all figures are sums and means of them,
so that several readings of the published protocol come from the same predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.published.evaluation.clicks import CLICK_LIMIT, DICE_CLICKS, NOC_THRESHOLDS

NO_MASK = -1
"""In place of a mask's pixels if there is no mask: before the first click of a series that starts from nothing."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModeCounts:
    """Counts of the masks of one mode.

    `pair` (n,) are row numbers of the pairs of the data set. `overlap` and `predicted` (n, columns) are pixels that the
    mask shares with the truth and pixels of the mask. If `clicks`, column k is the mask after k clicks, else the mask
    with the k-th draw of references.
    """

    clicks: bool
    pair: NDArray[np.int64]
    overlap: NDArray[np.int64]
    predicted: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PairCounts:
    """The pairs of a data set and the counts of each mode.

    `case`, `number`, `structure`, `true` (N,): number of the case in `cases`, slice, number of the structure in
    `structures`, pixels of the truth. `volumes`: whether the cases are volumes, not pictures.
    """

    cases: tuple[str, ...]
    structures: tuple[str, ...]
    volumes: bool
    case: NDArray[np.int64]
    number: NDArray[np.int64]
    structure: NDArray[np.int64]
    true: NDArray[np.int64]
    modes: Mapping[str, ModeCounts]

    def figures(self) -> list[Figure]:
        """All figures of all modes."""
        return [figure for mode in self.modes for figure in self._of_mode(mode)]

    def _of_mode(self, mode: str) -> list[Figure]:
        counts = self.modes[mode]
        if not len(counts.pair):
            return []
        if not counts.clicks:
            return [self._dice(mode, "dice", range(counts.overlap.shape[1]))]
        scores = self._scores(counts)
        return [
            *(self._dice(mode, f"dice_{clicks}", [clicks]) for clicks in DICE_CLICKS),
            *(self._noc(mode, scores, threshold) for threshold in NOC_THRESHOLDS),
        ]

    def _scores(self, counts: ModeCounts) -> FloatArray:
        """Dice (n, columns) of each pair; 0 without a mask, as for an empty one."""
        return _dice(counts.overlap, counts.predicted, self.true[counts.pair][:, None])

    def _dice(self, mode: str, metric: str, columns: Sequence[int]) -> Figure:
        """Dice in percent: means of the draws' means over `columns`."""
        counts = self.modes[mode]
        by_slice = 100 * self._scores(counts)[:, columns]
        structure = self.structure[counts.pair]
        figure = self._figure(mode, metric, by_slice, structure)
        if not self.volumes:
            return figure
        _, first, volume = np.unique(
            self.case[counts.pair] * len(self.structures) + structure, return_index=True, return_inverse=True
        )
        overlap, predicted = (_sums(values, volume) for values in (counts.overlap, counts.predicted.clip(0)))
        by_volume = 100 * _dice(overlap, predicted, _sums(self.true[counts.pair][:, None], volume))[:, columns]
        whole = self._figure(mode, metric, by_volume, structure[first])
        return replace(figure, by_volume=whole.value, by_volume_mean_of_structures=whole.mean_of_structures)

    def _noc(self, mode: str, scores: FloatArray, threshold: float) -> Figure:
        metric = f"noc{100 * threshold:.0f}"
        structure = self.structure[self.modes[mode].pair]
        figure = self._figure(mode, metric, clicks_needed(scores, threshold)[:, None], structure)
        at_least = float(clicks_needed(scores, threshold, reached=np.greater_equal).mean())
        failed = float(1 - (scores > threshold).any(axis=1).mean())
        return replace(figure, at_least=at_least, never_reached=failed)

    def _figure(self, mode: str, metric: str, values: FloatArray, structure: NDArray[np.int64]) -> Figure:
        """Means of `values` (n, draws): over all rows, and by structure."""
        draws = values.mean(axis=0)
        by_structure = {
            name: StructureFigure(float(values[structure == number].mean()), int((structure == number).sum()))
            for number, name in enumerate(self.structures)
            if (structure == number).any()
        }
        return Figure(
            mode,
            metric,
            float(draws.mean()),
            len(values),
            float(draws.std(ddof=1)) if len(draws) > 1 else None,
            by_structure,
            float(np.mean([one.value for one in by_structure.values()])),
        )


@dataclass(frozen=True)
class StructureFigure:
    """The mean of a figure over the `pairs` of one structure."""

    value: float
    pairs: int


@dataclass(frozen=True)
class Figure:
    """One measured figure of a data set: Dice in percent, or a number of clicks.

    `value` is the reading taken: the mean over all `pairs`, whatever their structure. `spread` is the standard
    deviation of several draws of references. Other readings: the mean of the structures' means; Dice of whole volumes,
    over the slices that show the structure; clicks to a Dice of at least the threshold, not above it. None where a
    reading does not apply. `never_reached` is the share of pairs that count as `CLICK_LIMIT`.
    """

    mode: str
    metric: str
    value: float
    pairs: int
    spread: float | None
    by_structure: Mapping[str, StructureFigure]
    mean_of_structures: float
    by_volume: float | None = None
    by_volume_mean_of_structures: float | None = None
    at_least: float | None = None
    never_reached: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def clicks_needed(
    scores: FloatArray, threshold: float, *, reached: Callable[[FloatArray, float], NDArray[np.bool_]] = np.greater
) -> FloatArray:
    """Number of clicks (NoC) after which Dice first is above `threshold`; `CLICK_LIMIT` if it never is.

    `scores` (n, clicks + 1) are Dice values after 0, 1, ... clicks. Without a mask before the first click the first
    one is 0, so at least one click is needed.
    """
    there = reached(scores, threshold)
    return np.where(there.any(axis=1), there.argmax(axis=1), CLICK_LIMIT).astype(np.float64)


def _dice(overlap: NDArray[np.int64], predicted: NDArray[np.int64], true: NDArray[np.int64]) -> FloatArray:
    """Dice of counts of one shape; `true` is never 0."""
    values: FloatArray = 2 * overlap / (predicted.clip(0) + true)
    return values


def _sums(values: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums (groups, columns) of the rows of `values` (n, columns) with the same number in `group` (n,)."""
    sums = np.zeros((int(group.max()) + 1, values.shape[1]), np.int64)
    np.add.at(sums, group, values)
    return sums
