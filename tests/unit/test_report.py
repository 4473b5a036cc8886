# SPDX-License-Identifier: Apache-2.0
"""Means, tables and pictures of an evaluation, of figures that are given."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kprism_model.evaluation.contact_sheet import (
    COLUMNS,
    PREDICTED_COLOUR,
    TILE_PIXELS,
    TRUE_COLOUR,
    WorstCase,
    contact_sheet,
)
from kprism_model.evaluation.plots import plot_clicks, plot_modes
from kprism_model.evaluation.report import Curve, DatasetResult, EvaluationReport, Figure
from kprism_model.evaluation.report_tables import mode_title, to_markdown


def report() -> EvaluationReport:
    """Two trained data sets, the first of two classes, and one that was never seen."""

    def result(name: str, trained: str, values: dict[str, float]) -> DatasetResult:
        figures = [Figure(name, kind, "interactive", "dice_5", value, 4) for kind, value in values.items()]
        if trained == "all":
            figures += [Figure(name, kind, "semantic", "dice_present", value / 2, 4) for kind, value in values.items()]
        figures.append(Figure(name, "a", "semantic+interactive", "clicks_saved", 0.25, 4))
        curves = [Curve(name, "a", "interactive", [0.0, 0.5, 0.6, 0.7, 0.8, 0.9], [0.0, 0.5, 1.0])]
        return DatasetResult(name, "4 of 4 cases, 4 of 4 slices", trained, figures, curves, [f"{name}: a note"])

    results = [result("one", "all", {"a": 0.6, "b": 1.0}), result("two", "all", {"a": 0.4})]
    return EvaluationReport({"split": "test"}, [*results, result("new", "none", {"a": 0.2})])


def test_a_mean_is_over_data_sets_of_the_mean_over_classes() -> None:
    assert report().by_dataset("interactive", "dice_5") == pytest.approx({"one": 0.8, "two": 0.4, "new": 0.2})
    assert report().mean("interactive", "dice_5") == pytest.approx((0.8 + 0.4 + 0.2) / 3)
    assert report().mean("interactive", "dice_5", ["one", "two"]) == pytest.approx(0.6)
    assert report().mean("interactive", "noc90") is None


def test_an_unknown_figure_is_named() -> None:
    assert report().value("one", "b", "interactive", "dice_5") == 1.0
    with pytest.raises(ValueError, match="no figure 'dice_9' of"):
        report().value("one", "b", "interactive", "dice_9")


def test_the_summary_comes_first_with_means_of_what_was_trained() -> None:
    text = to_markdown(report(), pictures=("modes.png",))
    summary, rest = text.split("![modes](modes.png)")
    assert "| data set | semantic | 5 clicks | saved |" in summary
    assert "| one | 0.400 | 0.800 | 25 % |" in summary
    assert "| **mean, trained on** | **0.300** | **0.600** | **25 %** |" in summary
    assert "| new |  | 0.200 | 25 % |" in summary and "**mean, never seen**" not in summary
    assert "## Interactive: clicks by the simulated user" in rest
    assert "- two: a note" in rest


def test_modes_have_titles() -> None:
    assert mode_title("in_context_1") == "In-context, 1 reference"
    assert mode_title("retrieved_5") == "In-context, 5 retrieved references"
    assert mode_title("in_context_5+interactive") == "Chained: clicks after a mask from 5 references"


def test_a_report_survives_the_way_through_json() -> None:
    content = report().to_dict()
    assert EvaluationReport.from_dict(content).to_dict() == content
    with pytest.raises(ValueError, match="format_version 1"):
        EvaluationReport.from_dict({**content, "format_version": 1})


def test_plots_are_drawn_where_there_is_something_to_draw() -> None:
    empty = EvaluationReport({}, [DatasetResult("none", "", "all")])
    for plot in (plot_clicks, plot_modes):
        content = plot(report())
        assert content is not None
        pixels = np.array(Image.open(io.BytesIO(content)).convert("L"))
        assert (pixels < 128).sum() > 500
        assert plot(empty) is None


def test_a_contact_sheet_shows_both_outlines() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:30] = True
    case = WorstCase("set", "box", "semantic", "case", 0, 0.5, np.zeros((40, 60), np.float32), mask, mask[:, ::-1])
    sheet = np.array(Image.open(io.BytesIO(contact_sheet([case] * (COLUMNS + 1)))))
    assert sheet.shape[1] == COLUMNS * TILE_PIXELS and sheet.shape[0] > 2 * TILE_PIXELS
    for colour in (TRUE_COLOUR, PREDICTED_COLOUR):
        assert (sheet == colour).all(2).sum() > 8 * 100
