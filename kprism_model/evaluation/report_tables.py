# SPDX-License-Identifier: Apache-2.0
"""An evaluation as Markdown: a summary, then one table for each mode."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kprism_model.evaluation.report import EvaluationReport, Figure

MODE_TITLES = {
    "semantic": "Semantic",
    "interactive": "Interactive: clicks by the simulated user",
    "scribble+interactive": "Interactive after a human scribble",
    "semantic+interactive": "Chained: clicks after a semantic mask",
}

FIGURE_TITLES = {
    "dice_present": "Dice where present",
    "dice_case": "Dice per case",
    "hd95": "HD95",
    "detection_rate": "found",
    "false_positive_rate": "false positives",
    "claimed": "false positives on absent structures",
    "dice_first": "Dice of the initial mask",
    "dice_1": "Dice, 1 click",
    "dice_3": "3 clicks",
    "dice_5": "5 clicks",
    "noc85": "NoC85",
    "noc85_failed": "failed",
    "noc90": "NoC90",
    "noc90_failed": "failed",
    "clicks_saved": "clicks saved",
}

GROUPS = {"all": "trained on", "some": "trained on in part", "none": "never seen"}
"""Titles of the groups of data sets, by how many of their classes the network knows."""

READING = """\
- Dice where present: per slice that shows the structure (the paper's protocol). Dice per case: over all slices of a
  volume or picture, absent structures included (1 if both masks are empty, 0 for a false positive). A mask whose
  presence is below 0.5 counts as empty, here and in HD95.
- HD95: per case, in mm for volumes (by the spacing in the file's header), in pixels for pictures. Cases where one of
  the two masks is empty are left out.
- Found: share of the structures in a slice, with 20 pixels or more, that the semantic mask overlaps. False positives:
  share of the structures that are not in a slice, or cannot be there (such as polyps in a chest X-ray), for which the
  semantic mask holds any pixel. Masks count as a user gets them: empty if presence is below 0.5. The figures of a data
  set are over all its structures and slices together.
- False positives on absent structures (first protocol): share of slices and classes of other kinds of images with a
  presence of 0.5 or more.
- In-context figures are mean ± standard deviation over draws of references from other patients of the training list.
  Retrieved references are the training images that are most similar to the query, by the image encoder's features.
- Clicks: one object is a structure in a slice. Structures of many instances, such as nuclei, are clicked one at a time
  (protocol "instances"): an object is a connected component of 20 pixels or more, and four of each slice are drawn by
  seed. Figures are means over the objects of a slice, then over slices. An initial mask holds all instances, and clicks
  after it correct it as a whole. There are no "clicks saved" then, because clicks alone segment something else.
- NoC: mean number of clicks to that Dice; a failure counts as the limit. The share of failures is in the next column.
  Clicks saved: by how much NoC90 is smaller than with clicks alone on the same objects; its mean is the mean of shares.
- In brackets: the number of slices or cases behind a figure. A mean over data sets is the mean of each data set's mean
  over classes."""


def to_markdown(report: EvaluationReport, *, pictures: Sequence[str] = ()) -> str:
    """The whole report: protocol, summary, pictures (file names), a table for each mode, notes, how to read it."""
    settings = ", ".join(f"{key} {value}" for key, value in report.protocol.items())
    samples = "\n".join(f"- {result.name}: {result.sample}" for result in report.results)
    links = "\n".join(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures)
    modes = list(dict.fromkeys(figure.mode for figure in report.figures))
    notes = "\n".join(f"- {note}" for result in report.results for note in result.notes)
    parts = ["# Evaluation", settings + ".", samples, _summary(report), links]
    parts += [_table(report, mode) for mode in modes]
    return "\n\n".join(part for part in [*parts, notes, READING] if part) + "\n"


def mode_title(mode: str) -> str:
    """The heading of a mode, such as "in_context_5+interactive"."""
    if mode in MODE_TITLES:
        return MODE_TITLES[mode]
    kind, _, count = mode.removesuffix("+interactive").rpartition("_")
    references = f"{count} {'retrieved ' * (kind == 'retrieved')}reference{'s' * (count != '1')}"
    return f"Chained: clicks after a mask from {references}" if "+" in mode else f"In-context, {references}"


def summary_columns(report: EvaluationReport) -> list[tuple[str, str, str]]:
    """Title, mode and name of the measured figures that a summary shows."""
    modes = {figure.mode for figure in report.figures}
    references = sorted(int(mode.removeprefix("in_context_")) for mode in modes if _is_in_context(mode))
    columns = [("semantic", "semantic", "dice_present"), ("semantic, per case", "semantic", "dice_case")]
    columns += [
        (FIGURE_TITLES[name], "semantic", name) for name in ("detection_rate", "false_positive_rate", "claimed")
    ]
    for count in references:
        columns.append((f"{count} ref.", f"in_context_{count}", "dice_present"))
        columns.append((f"{count} retrieved", f"retrieved_{count}", "dice_present"))
    columns += [(f"{n} click{'s' * (n > 1)}", "interactive", f"dice_{n}") for n in (1, 3, 5)]
    columns += [(f"NoC{n}", "interactive", f"noc{n}") for n in (85, 90)]
    columns.append(("failed", "interactive", "noc90_failed"))
    columns.append(("NoC90 after semantic", "semantic+interactive", "noc90"))
    columns.append(("saved", "semantic+interactive", "clicks_saved"))
    for count in references[-1:]:
        columns.append((f"NoC90 after {count} ref.", f"in_context_{count}+interactive", "noc90"))
        columns.append(("saved", f"in_context_{count}+interactive", "clicks_saved"))
    return [column for column in columns if report.by_dataset(column[1], column[2])]


def _is_in_context(mode: str) -> bool:
    return mode.startswith("in_context_") and "+" not in mode


def _summary(report: EvaluationReport) -> str:
    columns = summary_columns(report)
    lines = [_row(["data set", *(title for title, _, _ in columns)]), _row(["---", *("---:" for _ in columns)])]
    for group, title in GROUPS.items():
        names = [result.name for result in report.results if result.trained == group]
        for name in names:
            lines.append(_row([name, *(_mean_cell(report, mode, figure, [name]) for _, mode, figure in columns)]))
        if len(names) > 1:
            cells = [_mean_cell(report, mode, figure, names) for _, mode, figure in columns]
            lines.append(_row([f"**mean, {title}**", *(f"**{cell}**" if cell else "" for cell in cells)]))
    return "## Summary\n\nDice where present, mean over classes, unless the column says otherwise.\n\n" + "\n".join(
        lines
    )


def _mean_cell(report: EvaluationReport, mode: str, name: str, datasets: Collection[str]) -> str:
    """The mean; and the number of data sets in it if some of them lack the figure."""
    measured = [key for key in report.by_dataset(mode, name) if key in datasets]
    if not measured:
        return ""
    count = f" ({len(measured)})" if len(measured) < len(datasets) else ""
    return _number(report.mean(mode, name, measured), name) + count


def _table(report: EvaluationReport, mode: str) -> str:
    measured = {figure.name for figure in report.figures if figure.mode == mode}
    names = [name for name in FIGURE_TITLES if name in measured]
    rows = list(dict.fromkeys((f.dataset, f.class_name) for f in report.figures if f.mode == mode))
    lines = [_row(["data set", "class", *(FIGURE_TITLES[name] for name in names)])]
    lines.append(_row(["---", "---", *("---:" for _ in names)]))
    for dataset, class_name in rows:
        figures = [(report.figure(dataset, class_name, mode, name), name) for name in names]
        lines.append(_row([dataset, class_name, *(_cell(figure, name) for figure, name in figures)]))
    means = ["" if name == "hd95" else _number(report.mean(mode, name), name) for name in names]
    lines.append(_row(["**mean**", "", *means]))
    return f"## {mode_title(mode)}\n\n" + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(figure: Figure | None, name: str) -> str:
    if figure is None:
        return ""
    spread = "" if figure.std is None else f" ± {_number(figure.std, name)}"
    unit = f" {figure.unit}" if figure.unit else ""
    return f"{_number(figure.value, name)}{spread}{unit} ({figure.count})"


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    if name.endswith(("_failed", "_rate")) or name in ("clicks_saved", "claimed"):
        return f"{100 * value:.0f} %"
    return f"{value:.3f}" if name.startswith("dice") else f"{value:.1f}"
