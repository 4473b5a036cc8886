# SPDX-License-Identifier: Apache-2.0
"""Means of groups and published figures beside them, of results made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kprism_model.published.evaluation.comparison_rows import Comparison, Measured
from kprism_model.published.evaluation.evaluate import SetResult
from kprism_model.published.evaluation.pair_counts import ModeCounts, PairCounts
from kprism_model.published.evaluation.printed_figures import OURS, read_printed
from kprism_model.published.evaluation.protocol import PublishedProtocol
from kprism_model.published.evaluation.table import Footnotes, to_markdown
from kprism_model.published.sets import published_sets


def result(name: str, overlap: int, *, known: int = 2) -> SetResult:
    """Two structures of 100 pixels in a picture, of which `known` have a semantic mask of 100 pixels."""
    rows = np.arange(known)
    mode = ModeCounts(False, rows, np.full((known, 1), overlap), np.full((known, 1), 100))
    zeros = np.zeros(2, np.int64)
    counts = PairCounts(
        ("a",), ("x", "y"), False, zeros, zeros, np.arange(2), zeros + 100, {"semantic": mode} if known else {}
    )
    return SetResult(name, "1 of 1 cases, 1 of 1 slices", ("x", "y")[known:], (), counts)


def comparison(*results: SetResult, references: int = 1) -> Comparison:
    return Comparison(results, read_printed(), PublishedProtocol(references=references), "abc", 64)


def mean(of: Comparison, role: str) -> Measured | None:
    return of.measured(role, "semantic", "dice")


def test_a_mean_says_what_it_is_of() -> None:
    assert mean(comparison(), "external") is None
    assert mean(comparison(result("acdc_mr", 50)), "external") == Measured(50.0, None, "1 of 4 sets")
    given = comparison(result("acdc_mr", 50), result("btcv_ct", 80, known=1), result("bus_us", 10, known=0))
    assert mean(given, "external") == Measured(65.0, None, "2 of 4 sets, 1 in part")
    assert given.measured("btcv_ct", "semantic", "dice") == Measured(80.0, None, "1 of 2 structures")
    assert given.measured("bus_us", "semantic", "dice") is None
    externals = [name for name, one in published_sets().items() if one.role == "external"]
    assert mean(comparison(*(result(name, 50) for name in externals)), "external") == Measured(50.0)
    assert mean(comparison(result("elsewhere", 50)), "other") is None  # no such mean in the paper


def test_kits_counts_once() -> None:
    trained = [name for name, one in published_sets().items() if one.role == "trained"]
    given = comparison(*(result(name, 0 if name == "kits19_ct" else 60) for name in trained))
    assert len(trained) == 13 and mean(given, "trained") == Measured(60.0)
    assert any(note.startswith("kits19_ct is not in the mean") for note in given.notes())
    [entry] = given.to_dict()["means"]
    assert "kits19_ct" not in entry["of"] and len(entry["of"]) == entry["sets_of_the_paper"] == 12
    assert mean(comparison(result("kits19_ct", 40)), "trained") == Measured(40.0, None, "1 of 12 sets")


@pytest.mark.parametrize(("references", "beside"), [(1, 78.21), (9, 79.90), (5, None)])
def test_published_figures_have_as_many_references(references: int, beside: float | None) -> None:
    given = comparison(references=references)
    found = given.published(OURS, "amos_mr", "in_context", "dice")
    assert (found and found.value) == beside
    rivals = to_markdown(given).split("## Rivals")[1]
    others = {1: ["79.90"], 9: ["78.21"], 5: ["78.21", "79.90"]}[references]
    rows = [line for line in rivals.splitlines() if "| amos_mr |" in line]
    assert [next(value for value in ("78.21", "79.90") if f"| K-Prism | {value}" in row) for row in rows] == others


def test_rows_follow_the_paper_and_others_come_last() -> None:
    names = [row.name for row in comparison(result("elsewhere", 1), result("bkai_endoscopy", 1)).rows()]
    assert names.index("lits_ct") < names.index("bkai_endoscopy") < names.index("trained") < names.index("external")
    assert names[-2:] == ["unseen", "elsewhere"] and "papila_fundus" not in names


def test_a_figure_s_footnote_tells_its_source_and_conditions() -> None:
    printed = read_printed()
    notes = Footnotes(printed)
    cells = [notes.cell(figure) for figure in printed.figures[:5]] + [notes.cell(None)]
    assert cells == [
        "86.21<sup>a</sup>",
        "83.45<sup>a</sup>",
        "64.22<sup>b</sup>",
        "78.70<sup>c</sup>",
        "78.70<sup>c</sup>",
        "–",
    ]
    lines = list(notes.lines())
    assert lines[0].startswith("- <sup>a</sup> second hand, as reported by source 1: long side 512") and len(lines) == 5
    assert lines[2].endswith("the edition of KiTS (19 or 23) is not known.")
    assert lines[3].startswith("- Source 1: [a summary of the paper by a third party](https://")
