# SPDX-License-Identifier: Apache-2.0
"""The published table as one figure: a checkpoint beside the published figures of K-Prism and its rivals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from kprism_model.evaluation.plots import COLOURS, png_bytes
from kprism_model.published.comparison_rows import COLUMNS, ROLES, Comparison, Row
from kprism_model.published.printed_figures import OURS

_PANELS = ("semantic", "in-context", "Dice(5)", "NoC90")
_MARKS = {"this checkpoint": ("o", COLOURS[0]), OURS: ("D", COLOURS[1])}
_RIVAL_MARKS = (("s", COLOURS[2]), ("^", COLOURS[3]), ("v", COLOURS[4]), ("P", COLOURS[5]), ("X", COLOURS[6]))
_CLICKS_SHOWN = 10.0  # the axis of clicks goes at least so far, so that small differences do not look large


def plot_comparison(comparison: Comparison) -> bytes:
    """A PNG with a panel for semantic and in-context Dice, Dice after 5 clicks and NoC90; a line for each row.

    Marks differ in form and colour. Means of roles are in bold. A line joins the checkpoint's and the published figure.
    """
    rows = comparison.rows()
    rivals = list(dict.fromkeys(one.method for one in comparison.printed.figures if one.method != OURS))
    marks = _MARKS | {method: _RIVAL_MARKS[place % len(_RIVAL_MARKS)] for place, method in enumerate(rivals)}
    canvas = Canvas(figsize=(12, 2.2 + 0.36 * len(rows)), layout="constrained")
    panels = canvas.subplots(1, len(_PANELS), sharey=True)
    shown: dict[str, None] = {}
    for axes, title in zip(panels, _PANELS, strict=True):
        for name in _draw_panel(axes, comparison, rows, title, marks):
            shown[name] = None
    _name_rows(panels[0], rows)
    handles = [
        Line2D([], [], linestyle="", marker=marks[name][0], color=marks[name][1], markersize=8, label=_legend(name))
        for name in marks
        if name in shown
    ]
    canvas.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=11, frameon=False)
    return png_bytes(canvas)


def _draw_panel(
    axes: Axes, comparison: Comparison, rows: Sequence[Row], title: str, marks: dict[str, tuple[str, str]]
) -> list[str]:
    """Draw a column of the table; returns the names of the marks that it has."""
    place = next(number for number, column in enumerate(COLUMNS) if column[0] == title)
    _, mode, metric = COLUMNS[place]
    shown = []
    highest = 0.0
    for line, row in enumerate(rows):
        measured, published = row.measured[place], row.published[place]
        values = {
            "this checkpoint": None if measured is None else measured.value,
            OURS: None if published is None else published.value,
        }
        for method in marks:
            if method not in values:
                rival = comparison.published(method, row.name, mode, metric)
                values[method] = None if rival is None else rival.value
        if measured is not None and published is not None:
            axes.plot([measured.value, published.value], [line, line], color="0.75", lw=2, zorder=1)
        for name, value in values.items():
            if value is not None:
                form, colour = marks[name]
                axes.plot(value, line, form, color=colour, markersize=8, zorder=3 if name == "this checkpoint" else 2)
                shown.append(name)
                highest = max(highest, value)
    clicks = metric.startswith("noc")
    axes.set_xlim(0, max(_CLICKS_SHOWN, 1.08 * highest) if clicks else 102)
    axes.set_xlabel("clicks (fewer is better)" if clicks else "Dice in %", fontsize=11)
    axes.set_title(title, fontsize=12)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(labelsize=10)
    for line, row in enumerate(rows):
        if row.is_mean:
            axes.axhspan(line - 0.5, line + 0.5, color="0.93", zorder=0)
    return shown


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    """Names of the rows on the left, the first on top."""
    axes.set_yticks(range(len(rows)))
    labels = axes.set_yticklabels([f"mean, {ROLES[row.role][0]}" if row.is_mean else row.name for row in rows])
    for label, row in zip(labels, rows, strict=True):
        label.set_fontsize(11)
        label.set_fontweight("bold" if row.is_mean else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _legend(name: str) -> str:
    return name if name == "this checkpoint" else f"{name}, published"
