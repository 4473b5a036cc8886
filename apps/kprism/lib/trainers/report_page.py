# SPDX-License-Identifier: Apache-2.0
"""One HTML page about a training: verdict, Dice before and after, curves, worst cases, labels used and skipped.

The page is a single file without scripts, and loads nothing from the network.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from kprism_model.files import write_bytes
from kprism_model.training.validation import Score, mean_dice
from lib.trainers.finetune_dataset import FinetuneDataset
from lib.trainers.report_figures import MODES, curves, pictures

KEPT_PAGES = 50
"""Pages that are kept."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { padding: .8rem 1rem; border-left: 4px solid; background: #f6f6f6; }
figure { display: inline-block; vertical-align: top; margin: 0 1rem 1rem 0; }
figcaption { font-size: .8rem; max-width: 16rem; }
img { display: block; width: 16rem; image-rendering: auto; }
"""


@dataclass(frozen=True)
class TrainingReport:
    """The outcome of a training.

    `number` is that of the published version, or None; `message` says what was decided and why. `before` and `after`
    are the scores of the serving and of the new weights on the validation cases. `metadata` are those of the version.
    """

    number: int | None
    message: str
    before: Sequence[Score]
    after: Sequence[Score]
    dataset: FinetuneDataset
    metadata: Mapping[str, Any]


def write_report(folder: Path, report: TrainingReport, log: Path) -> Path:
    """Write the page and return its path; the oldest pages are deleted. `log` has a JSON record for each step."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"version-{report.number}" if report.number else "not-published"
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.html"
    write_bytes(path, _page(report, log).encode())
    for old in sorted(folder.glob("*.html"))[:-KEPT_PAGES]:
        old.unlink(missing_ok=True)
    return path


def _page(report: TrainingReport, log: Path) -> str:
    title = f"Training of {time.strftime('%Y-%m-%d %H:%M')}"
    colour = "#0b6e4f" if report.number else "#c8553d"
    metadata = report.metadata
    body = [
        f"<h1>{title}</h1>",
        f'<p class="verdict" style="border-color: {colour}">{escape(report.message)}</p>',
        f"<p>From version {metadata['parent']}, {metadata['steps']} steps in {metadata['minutes']} minutes; "
        f"{round(100 * metadata['share_of_new_weights'])} % of the new weights.</p>",
        "<h2>Dice on the validation cases</h2>",
        _dice_table(report.before, report.after),
        _not_judged(metadata["not_judged"]),
        "<h2>Training</h2>",
        curves(log),
        "<h2>Worst cases</h2>",
        "<p>Green: the submitted label. Red: the prediction.</p>",
        *pictures(report.after, report.dataset.validation),
        "<h2>Labels</h2>",
        _labels(report.dataset),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<body>{''.join(body)}</body></html>"
    )


def _dice_table(before: Sequence[Score], after: Sequence[Score]) -> str:
    old, new = mean_dice(before), mean_dice(after)
    rows = []
    for mode, structure in sorted(old, key=lambda kind: (list(MODES).index(kind[0]), kind[1])):
        values = old[mode, structure], new[mode, structure]
        cells = "".join(f'<td class="number">{value:.4f}</td>' for value in values)
        change = f'<td class="number">{100 * (values[1] - values[0]):+.1f}</td>'
        rows.append(f"<tr><td>{escape(structure)}</td><td>{MODES[mode]}</td>{cells}{change}</tr>")
    head = "<tr><th>structure</th><th>mode</th><th>before</th><th>after</th><th>points</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _not_judged(names: Sequence[str]) -> str:
    """The structures without a Dice value."""
    if not names:
        return ""
    listed = escape(", ".join(names))
    return f"<p>The weights know these structures, but no label here shows them, so they are not judged: {listed}.</p>"


def _labels(dataset: FinetuneDataset) -> str:
    rows = [
        f"<tr><td>{escape(entry.image_id)}</td><td>{entry.fold}</td><td>{escape(', '.join(entry.structures))}</td>"
        f"<td>{escape(entry.by)}</td><td>{time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.at))}</td></tr>"
        for entry in dataset.used
    ]
    head = "<tr><th>case</th><th>fold</th><th>structures</th><th>by</th><th>submitted</th></tr>"
    used = f"<p>Used: {len(rows)}</p><table>{head}{''.join(rows)}</table>"
    if not dataset.skipped:
        return used
    items = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in sorted(dataset.skipped.items()))
    return f"{used}<p>Skipped: {len(dataset.skipped)}</p><ul>{items}</ul>"
