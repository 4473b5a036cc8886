# SPDX-License-Identifier: Apache-2.0
"""Figures of the published protocol, in all readings, of counts whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from kprism_model.published.evaluation.clicks import CLICK_LIMIT
from kprism_model.published.evaluation.pair_counts import NO_MASK, Figure, ModeCounts, PairCounts, clicks_needed


def pair_counts(modes: dict[str, ModeCounts], *, volumes: bool = True) -> PairCounts:
    """Three slices of a liver in two volumes, and one of a spleen, of 10 pixels each but the last liver's 40."""
    return PairCounts(
        ("one", "two"),
        ("liver", "spleen"),
        volumes,
        case=np.array([0, 0, 1, 1]),
        number=np.array([3, 4, 0, 0]),
        structure=np.array([0, 0, 0, 1]),
        true=np.array([10, 10, 40, 10]),
        modes=modes,
    )


def masks(overlap: list[list[int]], predicted: list[list[int]], pair: list[int] | None = None) -> ModeCounts:
    return ModeCounts(False, np.array(pair or range(len(overlap))), np.array(overlap), np.array(predicted))


def only(figures: list[Figure]) -> Figure:
    [figure] = figures
    return figure


def test_dice_pooled_by_structure_and_by_volume() -> None:
    # Dice of the pairs: 1, 0.5, 0.8, 0
    counts = pair_counts({"semantic": masks([[10], [5], [40], [0]], [[10], [10], [60], [30]])})
    figure = only(counts.figures())
    assert (figure.mode, figure.metric, figure.pairs, figure.spread) == ("semantic", "dice", 4, None)
    assert figure.value == pytest.approx(100 * 2.3 / 4)
    assert {name: (one.value, one.pairs) for name, one in figure.by_structure.items()} == {
        "liver": (pytest.approx(100 * 2.3 / 3), 3),
        "spleen": (0.0, 1),
    }
    assert figure.mean_of_structures == pytest.approx(100 * 2.3 / 3 / 2)
    # volumes: liver of "one" 2 * 15 / 40 = 0.75, liver of "two" 0.8, spleen of "two" 0
    assert figure.by_volume == pytest.approx(100 * 1.55 / 3)
    assert figure.by_volume_mean_of_structures == pytest.approx(100 * 1.55 / 2 / 2)


def test_pictures_have_no_figures_by_volume() -> None:
    figure = only(pair_counts({"semantic": masks([[10]], [[10]], [2])}, volumes=False).figures())
    assert figure.by_volume is None and figure.by_volume_mean_of_structures is None
    assert figure.value == pytest.approx(100 * 2 * 10 / 50) and list(figure.by_structure) == ["liver"]


def test_draws_give_a_mean_and_a_deviation() -> None:
    # Dice of the draws: pair 0: 1, 0; pair 3: 0.5, 0.5 -> means 0.75 and 0.25
    figure = only(pair_counts({"in_context": masks([[10, 0], [5, 5]], [[10, 0], [10, 10]], [0, 3])}).figures())
    assert figure.value == pytest.approx(50) and figure.spread == pytest.approx(100 * np.std([0.75, 0.25], ddof=1))
    assert figure.by_structure["liver"].value == pytest.approx(50)
    assert figure.by_volume == pytest.approx(50)


def clicked(rows: list[list[tuple[int, int]]]) -> ModeCounts:
    """Counts after 0, 1, ... clicks; the last ones stay to the end."""
    filled = np.array([row + row[-1:] * (CLICK_LIMIT + 1 - len(row)) for row in rows])
    return ModeCounts(True, np.arange(len(rows)), filled[..., 0], filled[..., 1])


NONE = (0, NO_MASK)


def test_clicks_alone() -> None:
    # pair 0 (10 pixels): Dice 0, 0.9 exactly, then 1; pair 1: 0.5 for ever
    counts = pair_counts({"interactive": clicked([[NONE, (0, 10), (9, 10), (10, 10)], [NONE, (5, 10)]])})
    figures = {figure.metric: figure for figure in counts.figures()}
    assert set(figures) == {"dice_1", "dice_5", "noc85", "noc90", "noc95"}
    assert figures["dice_1"].value == pytest.approx(25) and figures["dice_5"].value == pytest.approx(75)
    assert figures["dice_5"].by_volume == pytest.approx(75)  # 2 * 15 / 40
    assert figures["noc85"].value == (2 + CLICK_LIMIT) / 2
    assert figures["noc90"].value == (3 + CLICK_LIMIT) / 2  # 0.9 is not above 0.9
    assert figures["noc90"].at_least == (2 + CLICK_LIMIT) / 2
    assert figures["noc95"].value == (3 + CLICK_LIMIT) / 2 == figures["noc95"].at_least
    assert {figures[name].never_reached for name in ("noc85", "noc90", "noc95")} == {0.5}


def test_a_first_mask_counts_as_no_click() -> None:
    counts = pair_counts({"semantic+interactive": clicked([[(10, 10)], [(9, 10), (9, 10), (10, 10)], [(0, 0)]])})
    figures = {figure.metric: figure for figure in counts.figures()}
    assert figures["noc85"].value == pytest.approx((0 + 0 + CLICK_LIMIT) / 3)
    assert figures["noc90"].value == pytest.approx((0 + 2 + CLICK_LIMIT) / 3)
    assert figures["noc90"].at_least == pytest.approx((0 + 0 + CLICK_LIMIT) / 3)
    assert figures["noc90"].never_reached == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("scores", "threshold", "strict", "at_least"),
    [
        ([0.0, 0.85, 0.86], 0.85, 2, 1),
        ([0.0, 0.2, 0.95], 0.95, 20, 2),
        ([0.91, 0.2, 0.95], 0.90, 0, 0),
        ([0.0, 0.96, 0.1], 0.95, 1, 1),  # the first, even if it is lost again
    ],
)
def test_thresholds_are_strict(scores: list[float], threshold: float, strict: int, at_least: int) -> None:
    rows = np.array([scores + scores[-1:] * 18])
    assert clicks_needed(rows, threshold).tolist() == [strict]
    assert clicks_needed(rows, threshold, reached=np.greater_equal).tolist() == [at_least]


def test_a_mode_without_pairs_has_no_figures() -> None:
    empty = np.zeros((0, 1), np.int64)
    assert pair_counts({"in_context": ModeCounts(False, empty[:, 0], empty, empty)}).figures() == []
