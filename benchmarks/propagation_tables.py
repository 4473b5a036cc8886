# SPDX-License-Identifier: Apache-2.0
"""The tables of `benchmarks.propagation`, in Markdown, from its JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Figures = Mapping[str, Any]


def tables(report: Figures) -> Iterator[str]:
    """All tables of a report."""
    settings, structures = report["settings"], report["structures"]
    clicks, limit = settings["clicks"], settings["limit"]
    if structures:
        drawn = f"{settings['split']} split, weights {report['weights']}"
        yield f"{clicks} clicks on the middle slice, then propagated ({drawn}):"
        yield from ("", *_table(structures, AFTER_CLICKS, _methods(structures)), "")
    if structures and limit:
        yield f"Clicks to volume Dice 0.85 (at most {limit}) and share of volumes that do not reach it:"
        ways = list(dict.fromkeys(way for one in structures for way in one["clicks_needed"]))
        columns = {way: _clicks_cell(way, limit) for way in ways}
        yield from ("", *_table(structures, columns, [None]), "")
    if report["ct"]:
        yield f"CT, {clicks} clicks on the middle slice (slices beyond and missed at the first / last end):"
        yield from ("", *_ct_table(report["ct"]), "")
    if "speed" in report:
        yield from _speed_table(report["speed"], settings["threads"])


def _mean(key: str, digits: int, factor: float = 1, unit: str = "") -> Callable[[Sequence[Figures]], str]:
    return lambda ones: f"{factor * float(np.mean([one[key] for one in ones])):.{digits}f}{unit}"


def _ends(key: str) -> Callable[[Sequence[Figures]], str]:
    return lambda ones: f"{float(np.mean([end[key] for one in ones for end in one['ends']])):.1f}"


def _slices_per_second(ones: Sequence[Figures]) -> str:
    """Empty for methods that do not propagate, whose time is not measured."""
    if not any(one["propagated_slices"] for one in ones):
        return ""
    return f"{sum(one['propagated_slices'] for one in ones) / sum(one['seconds'] for one in ones):.1f}"


AFTER_CLICKS: dict[str, Callable[[Sequence[Figures]], str]] = {
    "slice Dice": _mean("slice_dice", 3),
    "volume Dice": _mean("volume_dice", 3),
    "voxels beyond the ends": _mean("voxels_beyond", 0, 100, " %"),
    "slices beyond, per end": _ends("beyond"),
    "slices missed, per end": _ends("missed"),
    "slices/s": _slices_per_second,
}


def _clicks_cell(way: str, limit: int) -> Callable[[Sequence[Figures]], str]:
    def cell(ones: Sequence[Figures]) -> str:
        counts = [one["clicks_needed"][way] for one in ones]
        mean = np.mean([limit if count is None else count for count in counts])
        return f"{mean:.1f} ({100 * np.mean([count is None for count in counts]):.0f} %)"

    return cell


def _methods(structures: Sequence[Figures]) -> list[str | None]:
    return list(dict.fromkeys(method for one in structures for method in one["after_clicks"]))


def _table(
    structures: Sequence[Figures], columns: Mapping[str, Callable[..., str]], methods: Sequence[str | None]
) -> Iterator[str]:
    """A row for each structure of each data set and for their mean; for each method (None: there is one row)."""
    names = ["data set", "structure", *([] if methods == [None] else ["method"])]
    yield f"| {' | '.join([*names, 'n', *columns])} |"
    yield "|" + "---|" * len(names) + "---:|" * (1 + len(columns))
    for method in methods:
        for dataset in dict.fromkeys(one["dataset"] for one in structures):
            own = [one for one in structures if one["dataset"] == dataset]
            groups = {
                name: [one for one in own if one["structure"] == name]
                for name in sorted({one["structure"] for one in own})
            }
            for name, ones in {**groups, "**mean**": own}.items():
                figures = ones if method is None else [one["after_clicks"][method] for one in ones]
                cells = [dataset, name, *([] if method is None else [method]), str(len(ones))]
                yield f"| {' | '.join([*cells, *(cell(figures) for cell in columns.values())])} |"


def _ct_table(ct: Sequence[Figures]) -> Iterator[str]:
    yield "| volume | structure | method | slice Dice | volume Dice | slices beyond | slices missed |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for one in ct:
        for method, figures in one["after_clicks"].items():
            beyond, missed = (" / ".join(str(end[key]) for end in figures["ends"]) for key in ("beyond", "missed"))
            dices = f"{figures['slice_dice']:.3f} | {figures['volume_dice']:.3f}"
            yield f"| {one['case']} | {one['structure']} | {method} | {dices} | {beyond} | {missed} |"


def _speed_table(speed: Mapping[str, Any], threads: int) -> Iterator[str]:
    slices, rows, columns = speed["volume"]
    yield f"A liver CT as {columns} x {rows} x {slices}, 3 clicks on the middle slice, {threads} threads:"
    yield from ("", "| | slices computed | seconds | slices/s | processor time |", "|---|---:|---:|---:|---:|")
    everything = speed["all clicks, nothing kept"]["processor_seconds"]
    for name in ("whole structure", "one click more", "all clicks, nothing kept"):
        one = speed[name]
        cells = f"{one['slices']} | {one['seconds']:.1f} | {one['slices'] / one['seconds']:.1f}"
        yield f"| {name} | {cells} | {100 * one['processor_seconds'] / everything:.0f} % |"
