# SPDX-License-Identifier: Apache-2.0
"""The search for structures in slices: anchors first, and between them only what can be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from kprism_model.predictor import Prediction
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery, search_step, segment_slices

SIZE = (4, 5)
SLICES = 27
QUERIES = {"long": SliceQuery(0, class_name="long"), "short": SliceQuery(0, class_name="short", prior=0.8)}
SHOWN = {"long": range(6, 15), "short": range(20, 22)}
"""The slices that show each structure."""


class Slices:
    """Slices whose predictions are written down; `asked` are the (slice, structure) pairs of each pass."""

    size = SIZE

    def __init__(self, far: float = 0.1, stopped: bool = False) -> None:
        self.far = far
        self.stopped = stopped
        self.asked: list[list[tuple[int, str]]] = []

    def __len__(self) -> int:
        return SLICES

    def predict(self, queries: Sequence[SliceQuery], *, minimum_presence: float) -> list[Prediction]:
        self.asked.append([(query.number, str(query.class_name)) for query in queries])
        return [self._prediction(query.number, str(query.class_name)) for query in queries]

    def _prediction(self, number: int, name: str) -> Prediction:
        probability = np.zeros(SIZE, np.float32)
        if number in SHOWN[name]:
            probability[int(name == "short") :, number % 5] = 0.9
            return Prediction(probability >= 0.5, probability, 0.9)
        near = number + 1 in SHOWN[name] or number - 1 in SHOWN[name]
        return Prediction(
            probability >= 0.5, probability, 0.9 if self.stopped and not near else 0.4 if near else self.far
        )


def found(slices: Slices, step: int, limits: range = range(SLICES)) -> dict[int, np.ndarray]:
    return dict(segment_slices(cast(SliceFeatures, slices), QUERIES, limits, 0.5, step))


@pytest.mark.parametrize("stopped", [False, True])
def test_structures_thicker_than_the_distance_of_anchors_are_found_as_by_the_full_search(stopped: bool) -> None:
    full, quick = Slices(stopped=stopped), Slices(stopped=stopped)
    expected, maps = found(full, 1), found(quick, 4)
    assert list(maps) == list(range(SLICES))
    assert all(np.array_equal(maps[number], expected[number]) for number in range(SLICES))
    assert (maps[7] == 1).any() and (maps[20] == 2).any() and not maps[25].any()
    asked = [pair for group in quick.asked for pair in group]
    assert len(asked) == len(set(asked)) < sum(map(len, full.asked)) * 0.6
    assert {(number, name) for number in range(0, SLICES, 4) for name in QUERIES} <= set(asked)
    assert not any(number in (1, 2, 3, 25, 26) for number, _ in asked)  # not even encoded
    assert {name for number, name in asked if number == 10} == {"long"}


def test_a_structure_that_is_nearly_present_on_an_anchor_is_searched_beside_it() -> None:
    slices = Slices(far=0.35)  # more than half of what is asked for, also with the prior of 0.8
    found(slices, 4)
    assert sum(map(len, slices.asked)) == SLICES * len(QUERIES)


@pytest.mark.parametrize("limits", [range(3), range(5, 7), range(9, 22), range(21, SLICES)])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_slice_does_not_depend_on_the_limits(step: int, limits: range) -> None:
    whole, part = Slices(), Slices()
    expected, maps = found(whole, step), found(part, step, limits)
    assert list(maps) == list(limits)
    assert all(np.array_equal(maps[number], expected[number]) for number in limits)
    assert all(group in whole.asked for group in part.asked)  # the same rows share a pass


def test_slices_come_as_soon_as_their_group_is_done() -> None:
    slices = Slices()
    number, _ = next(segment_slices(cast(SliceFeatures, slices), QUERIES, range(SLICES), 0.5, 4))
    assert number == 0 and max(asked for group in slices.asked for asked, _ in group) < 16


def test_anchors_are_close_whatever_the_distance_of_slices() -> None:
    assert [search_step(spacing) for spacing in (0.5, 1.0, 1.25, 1.5, 2.5, 3.0, 10.0)] == [4, 4, 4, 2, 2, 1, 1]
