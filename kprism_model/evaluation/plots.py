# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation: Dice by number of clicks for each data set, and the modes side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from kprism_model.evaluation.report import EvaluationReport

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--")
_MAXIMUM_BARS = 6


def plot_clicks(report: EvaluationReport) -> bytes | None:
    """A PNG: Dice after 0 to 5 clicks, and share of objects at Dice 0.90 within 0 to 20; a line for each data set.

    Dotted lines are clicks after a semantic mask. None if clicks were not measured.
    """
    curves = {mode: _mean_curves(report, mode) for mode in ("interactive", "semantic+interactive")}
    if not curves["interactive"]:
        return None
    canvas = Canvas(figsize=(11, 4.6), layout="constrained")
    left, right = canvas.subplots(1, 2)
    for number, name in enumerate(curves["interactive"]):
        style = {"color": COLOURS[number % len(COLOURS)], "lw": 1.8}
        dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
        for mode, line in (("interactive", dash), ("semantic+interactive", ":")):
            if name in curves[mode]:
                dice, reached = curves[mode][name]
                label = name if mode == "interactive" else None
                left.plot(range(len(dice)), dice, line, label=label, **style)
                right.plot(range(len(reached)), reached, line, **style)
    left.set(xlabel="clicks", ylabel="Dice", ylim=(0, 1), title="Dice by number of clicks")
    right.set(xlabel="clicks", ylabel="share of objects", ylim=(0, 1.01), title="Dice 0.90 by number of clicks")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(fontsize=8, title="dotted: after a semantic mask", title_fontsize=8, loc="lower right")
    return png_bytes(canvas)


def plot_modes(report: EvaluationReport) -> bytes | None:
    """A PNG: for each data set one bar a mode, its Dice where present. None if nothing was measured."""
    bars = _bars(report)
    names = [result.name for result in report.results if any(result.name in values for _, values in bars)]
    if not names:
        return None
    canvas = Canvas(figsize=(max(9.0, 1.4 * len(names) + 2), 4.4), layout="constrained")
    axes = canvas.subplots()
    width = 0.8 / len(bars)
    for number, (title, values) in enumerate(bars):
        places = np.arange(len(names)) + (number - (len(bars) - 1) / 2) * width
        heights = [values.get(name, np.nan) for name in names]
        axes.bar(places, heights, width, label=title, color=COLOURS[number % len(COLOURS)])
    axes.set(ylabel="Dice where present", ylim=(0, 1), xticks=range(len(names)))
    axes.set_xticklabels(names, rotation=20, ha="right")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    canvas.legend(loc="outside upper center", ncols=len(bars), fontsize=8, frameon=False)
    return png_bytes(canvas)


def _mean_curves(report: EvaluationReport, mode: str) -> dict[str, tuple[list[float], list[float]]]:
    """Data set -> the mean over classes of both curves."""
    by_dataset: dict[str, list[Any]] = {}
    for result in report.results:
        for curve in result.curves:
            if curve.mode == mode:
                by_dataset.setdefault(result.name, []).append(curve)
    return {
        name: (
            np.mean([curve.dice for curve in curves], axis=0).tolist(),
            np.mean([curve.reached for curve in curves], axis=0).tolist(),
        )
        for name, curves in by_dataset.items()
    }


def _bars(report: EvaluationReport) -> Sequence[tuple[str, dict[str, float]]]:
    """Title and value by data set of the measured modes, at most `_MAXIMUM_BARS`."""
    modes = {figure.mode for figure in report.figures}
    counts = sorted({mode.rpartition("_")[2] for mode in modes if mode.startswith("in_context_") and "+" not in mode})
    wanted = [("semantic", "semantic", "dice_present")]
    wanted += [(f"{count} reference{'s' * (count != '1')}", f"in_context_{count}", "dice_present") for count in counts]
    wanted += [(f"{count} retrieved", f"retrieved_{count}", "dice_present") for count in counts[-1:]]
    wanted += [("1 click", "interactive", "dice_1"), ("5 clicks", "interactive", "dice_5")]
    values = [(title, report.by_dataset(mode, name)) for title, mode, name in wanted]
    return [(title, by_dataset) for title, by_dataset in values if by_dataset][:_MAXIMUM_BARS]


def png_bytes(canvas: Canvas) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
