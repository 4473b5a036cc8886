# SPDX-License-Identifier: Apache-2.0
"""The published table as Markdown: a checkpoint beside the published figures, rivals, and other readings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kprism_model.published.evaluation.comparison_rows import COLUMNS, ROLES, Comparison, Measured, Row
from kprism_model.published.evaluation.printed_figures import OURS, Printed, PrintedFigure
from kprism_model.published.evaluation.protocol import PAPER_SIZE, READINGS
from kprism_model.published.evaluation.set_measurement import (
    AFTER_IN_CONTEXT,
    AFTER_SEMANTIC,
    IN_CONTEXT,
    INTERACTIVE,
    SEMANTIC,
)

NOT_AVAILABLE = "–"
"""In place of a published figure that is not in the table of published figures."""

MODE_TITLES = {
    SEMANTIC: "semantic",
    IN_CONTEXT: "in-context",
    INTERACTIVE: "clicks",
    AFTER_SEMANTIC: "clicks after semantic",
    AFTER_IN_CONTEXT: "clicks after in-context",
}


class Footnotes:
    """Letters for the sources and conditions of published figures, numbers for the sources, in order of first use."""

    def __init__(self, printed: Printed) -> None:
        self._printed = printed
        self._letters: dict[tuple[str, ...], str] = {}

    def cell(self, figure: PrintedFigure | None) -> str:
        """A published figure with the letter of its footnote."""
        if figure is None:
            return NOT_AVAILABLE
        key = (figure.source, *figure.conditions)
        letter = self._letters.setdefault(key, chr(ord("a") + len(self._letters)))
        return f"{number(figure.value, figure.spread)}<sup>{letter}</sup>"

    def lines(self) -> Iterator[str]:
        """The footnotes."""
        sources = list(dict.fromkeys(source for source, *_ in self._letters))
        for (source, *conditions), letter in self._letters.items():
            known = "; ".join(self._printed.conditions[one] for one in conditions) or "conditions not stated"
            origin = "read in" if self._printed.sources[source]["kind"] == "paper" else "second hand, as reported by"
            yield f"- <sup>{letter}</sup> {origin} source {1 + sources.index(source)}: {known}."
        for place, source in enumerate(sources, start=1):
            described = self._printed.sources[source]
            yield f"- Source {place}: [{described['what']}]({described['address']})."


def to_markdown(comparison: Comparison, *, picture: str | None = None) -> str:
    """The whole report; `picture` is the file name of the figure."""
    footnotes = Footnotes(comparison.printed)
    main, rivals = _main_table(comparison, footnotes), _rivals(comparison, footnotes)
    samples = [f"- {result.name}: {result.sample}, {len(result.counts.true)} pairs" for result in comparison.results]
    parts = [
        "# The published table",
        _head(comparison),
        "\n".join(samples),
        main,
        f"![This checkpoint beside the published figures]({picture})" if picture else "",
        rivals,
        "\n".join(footnotes.lines()),
        _legend(comparison),
        "\n".join(f"- {note}" for note in comparison.notes()),
        _readings_table(comparison),
        _structures_table(comparison),
        _readings_text(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def number(value: float, spread: float | None = None) -> str:
    """Two decimals, as the paper prints Dice in percent and numbers of clicks."""
    return f"{value:.2f}" if spread is None else f"{value:.2f} ± {spread:.2f}"


def _head(comparison: Comparison) -> str:
    settings = ", ".join(
        f"{name} {' '.join(value) if isinstance(value, list) else value}"
        for name, value in comparison.protocol.to_dict().items()
        if value is not None
    )
    sampled = comparison.protocol.max_slices is not None
    return (
        f"Weights {comparison.weights_version}, long side {comparison.native_size} pixels (the paper's: {PAPER_SIZE}); "
        f"{settings}." + (" **A sample of the lists, for a quick look.**" if sampled else "")
    )


def _main_table(comparison: Comparison, footnotes: Footnotes) -> str:
    rows = comparison.rows()
    shown = [place for place in range(len(COLUMNS)) if any(row.measured[place] for row in rows)]
    beside = [place for place in shown if any(row.published[place] for row in rows)]
    head = ["data set"]
    for place in shown:
        head += [COLUMNS[place][0], *(["published"] if place in beside else [])]
    lines = [_line(head), _line(["---", *("---:" for _ in head[1:])])]
    for row in rows:
        cells = []
        for place in shown:
            cells.append(_measured(row.measured[place]))
            cells += [footnotes.cell(row.published[place])] if place in beside else []
        lines.append(_line([_name(row), *cells]))
    what = f'Dice in %, number of clicks (NoC) to a Dice. Columns "published" are the figures of {OURS} in the paper.'
    return f"## This checkpoint beside the published figures\n\n{what}\n\n" + "\n".join(lines)


def _name(row: Row) -> str:
    if not row.is_mean:
        return row.name
    title, of = ROLES[row.role]
    return f"**mean of the {of} {title}**"


def _rivals(comparison: Comparison, footnotes: Footnotes) -> str:
    """The rivals, and K-Prism with another number of references."""
    lines = [
        _line(["mode", "data sets", "metric", "method", "published", f"{OURS}, published", "this checkpoint"]),
        _line(["---", "---", "---", "---", "---:", "---:", "---:"]),
    ]
    for figure in comparison.printed.figures:
        place = (figure.sets, figure.mode, figure.metric)
        ours = comparison.published(OURS, *place)
        if figure is ours or (figure.method == OURS and figure.references == comparison.protocol.references):
            continue
        references = f", {figure.references} references" if figure.references > 1 else ""
        mode = MODE_TITLES[figure.mode] + references
        sets = f"mean of the {ROLES[figure.sets][0]}" if figure.sets in ROLES else figure.sets
        cells = [footnotes.cell(figure), footnotes.cell(ours), _measured(comparison.measured(*place))]
        lines.append(_line([mode, sets, metric_title(figure.metric), figure.method, *cells]))
    return "## Rivals, as published\n\n" + "\n".join(lines)


def metric_title(metric: str) -> str:
    """A metric as the paper writes it: Dice, Dice(5), NoC90."""
    name, _, clicks = metric.partition("_")
    return f"Dice({clicks})" if clicks else {"dice": "Dice"}.get(name, name.replace("noc", "NoC"))


def _legend(comparison: Comparison) -> str:
    return (
        f"{NOT_AVAILABLE}: the published figure is not available to us (`figures.toml` says how to fill it in). "
        "An empty cell: not measured, or the checkpoint does not know the structures. In brackets: what a mean is of, "
        "if something is missing. ±: standard deviation over draws of the references "
        f"({comparison.protocol.draws} here)."
    )


def _readings_table(comparison: Comparison) -> str:
    head = ["data set", "figure", "pairs", "taken: all pairs", "mean of structures", "per volume, all pairs"]
    head += ["per volume, mean of structures", "NoC (>=)", "never reached"]
    lines = [_line(head), _line(["---", "---", *("---:" for _ in head[2:])])]
    for result in comparison.results:
        for figure in result.figures:
            readings = (
                figure.mean_of_structures,
                figure.by_volume,
                figure.by_volume_mean_of_structures,
                figure.at_least,
            )
            cells = ["" if value is None else number(value) for value in (figure.value, *readings)]
            never = "" if figure.never_reached is None else f"{100 * figure.never_reached:.0f} %"
            title = f"{MODE_TITLES[figure.mode]}, {metric_title(figure.metric)}"
            lines.append(_line([result.name, title, str(figure.pairs), *cells, never]))
    return "## The same predictions, read otherwise\n\n" + "\n".join(lines)


def _structures_table(comparison: Comparison) -> str:
    shown = [
        (title, mode, metric)
        for title, mode, metric in COLUMNS
        if any(result.figure(mode, metric) for result in comparison.results)
    ]
    lines = [_line(["data set", "structure", *(title for title, _, _ in shown)])]
    lines.append(_line(["---", "---", *("---:" for _ in shown)]))
    for result in comparison.results:
        for name in result.counts.structures:
            cells = []
            for _, mode, metric in shown:
                figure = result.figure(mode, metric)
                one = None if figure is None else figure.by_structure.get(name)
                cells.append("" if one is None else f"{number(one.value)} ({one.pairs})")
            lines.append(_line([result.name, name, *cells]))
    return "## By structure\n\nIn brackets: slices.\n\n" + "\n".join(lines)


def _readings_text() -> str:
    lines = [
        f"- **{choice}**: {taken}." + (f" Other reading: {other}." if other else "")
        for choice, taken, other in READINGS
    ]
    return "## Where the protocol leaves a choice\n\n" + "\n".join(lines)


def _measured(cell: Measured | None) -> str:
    if cell is None:
        return ""
    return number(cell.value, cell.spread) + (f" ({cell.part})" if cell.part else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
