# SPDX-License-Identifier: Apache-2.0
"""The published table as one figure: a checkpoint beside the published figures of K-Prism and its rivals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kprism_model.evaluation.plots import COLOURS, png_bytes
from kprism_model.published.evaluation.comparison_rows import COLUMNS, ROLES, Comparison, Row
from kprism_model.published.evaluation.printed_figures import OURS

_PANELS = ("semantic", "in-context", "Dice(5)", "NoC90")
_CHECKPOINT, _PART = "this checkpoint", "this checkpoint, a part of the sets or structures"
_MARKS = {_CHECKPOINT: ("o", COLOURS[0]), _PART: ("o", COLOURS[0]), OURS: ("D", COLOURS[1])}
_RIVAL_MARKS = (("s", COLOURS[2]), ("^", COLOURS[3]), ("v", COLOURS[4]), ("P", COLOURS[5]), ("X", COLOURS[6]))
_OFFSETS = {_CHECKPOINT: -0.2, _PART: -0.2, OURS: 0.0}  # in rows, so that equal values do not hide each other
_RIVAL_OFFSET = 0.2
_LEAST_CLICKS = 10.0  # the axis of clicks goes at least so far, so that small differences do not look large


def plot_comparison(comparison: Comparison) -> bytes:
    """A PNG with a panel for semantic and in-context Dice, Dice after 5 clicks and NoC90; a line for each row.

    Marks differ in form, colour and height. Means of roles are in bold, on grey. A measured value that lacks sets or
    structures of the published one is an empty circle.
    """
    rows = comparison.rows()
    rivals = list(dict.fromkeys(one.method for one in comparison.printed.figures if one.method != OURS))
    marks = _MARKS | {method: _RIVAL_MARKS[place % len(_RIVAL_MARKS)] for place, method in enumerate(rivals)}
    canvas = Canvas(figsize=(12, 2.6 + 0.4 * len(rows)), layout="constrained")
    panels = canvas.subplots(1, len(_PANELS), sharey=True)
    shown: set[str] = set()
    for axes, title in zip(panels, _PANELS, strict=True):
        shown |= _draw_panel(axes, comparison, rows, title, marks)
    _name_rows(panels[0], rows)
    handles = [Line2D([], [], label=_legend(name), **_style(name, marks)) for name in marks if name in shown]
    canvas.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=11, frameon=False)
    return png_bytes(canvas)


def _draw_panel(
    axes: Axes, comparison: Comparison, rows: Sequence[Row], title: str, marks: dict[str, tuple[str, str]]
) -> set[str]:
    """Draw a column of the table; returns the names of the marks that it has."""
    values = [(line, name, value) for line, row in enumerate(rows) for name, value in _values(comparison, row, title)]
    for line, name, value in values:
        height = line + _OFFSETS.get(name, _RIVAL_OFFSET)
        axes.plot(value, height, zorder=3, **_style(name, marks))
    numbers = [value for _, _, value in values] or [0.0]
    clicks = title.startswith("NoC")
    lowest = 0 if clicks else max(0.0, 10 * (min(numbers) // 10) - 5)
    axes.set_xlim(lowest, max(_LEAST_CLICKS, 1.08 * max(numbers)) if clicks else 101)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("clicks (fewer is better)" if clicks else "Dice in %", fontsize=11)
    axes.set_title(title, fontsize=12)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(labelsize=10)
    for line, row in enumerate(rows):
        if row.is_mean:
            axes.axhspan(line - 0.5, line + 0.5, color="0.93", zorder=0)
    return {name for _, name, _ in values}


def _values(comparison: Comparison, row: Row, title: str) -> Iterator[tuple[str, float]]:
    """The marks of a row in a column of the table, with their values."""
    place = next(number for number, column in enumerate(COLUMNS) if column[0] == title)
    measured, published = row.measured[place], row.published[place]
    if measured is not None:
        yield _PART if measured.part else _CHECKPOINT, measured.value
    if published is not None:
        yield OURS, published.value
    for figure in comparison.printed.figures:
        if figure.method != OURS and (figure.sets, figure.mode, figure.metric) == (row.name, *COLUMNS[place][1:]):
            yield figure.method, figure.value


def _style(name: str, marks: dict[str, tuple[str, str]]) -> dict[str, Any]:
    form, colour = marks[name]
    fill = "white" if name == _PART else colour
    return {"marker": form, "color": colour, "markerfacecolor": fill, "markersize": 8, "linestyle": ""}


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    """Names of the rows on the left, the first on top."""
    axes.set_yticks(range(len(rows)))
    labels = axes.set_yticklabels([f"mean, {ROLES[row.role][0]}" if row.is_mean else row.name for row in rows])
    for label, row in zip(labels, rows, strict=True):
        label.set_fontsize(11)
        label.set_fontweight("bold" if row.is_mean else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _legend(name: str) -> str:
    return name if name in (_CHECKPOINT, _PART) else f"{name}, published"
