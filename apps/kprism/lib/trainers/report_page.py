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
from kprism_model.training.validation import Score
from lib.trainers.finetune_dataset import FinetuneDataset
from lib.trainers.gate import Decision
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

    `number` is that of the published version, or None; `message` says what was decided and why. `decisions` say who
    answers each structure in each mode; `scores` are those of the new weights in cross-validation. `metadata` are those
    of the version.
    """

    number: int | None
    message: str
    decisions: Sequence[Decision]
    scores: Sequence[Score]
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
        f"<p>From version {metadata['parent']}, {metadata['steps']} steps so far; "
        f"this training took {metadata['minutes']} minutes. "
        f"The new weights are {metadata['tuned_share']:.0%} trained, the rest shipped.</p>",
        "<h2>Who answers</h2>",
        "<p>Mean Dice over patients. Site versions were measured on patients that they had never seen.</p>",
        _decision_table(report.decisions),
        "<h2>Training</h2>",
        curves(log),
        "<h2>Worst cases</h2>",
        "<p>Green: the submitted label. Red: the prediction.</p>",
        *pictures(report.scores, report.dataset.judged),
        "<h2>Labels</h2>",
        _labels(report.dataset),
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<body>{''.join(body)}</body></html>"
    )


def _decision_table(decisions: Sequence[Decision]) -> str:
    rows = []
    for decision in sorted(decisions, key=lambda one: (list(MODES).index(one.kind[0]), one.kind[1])):
        mode, structure = decision.kind
        chosen = "new" if decision.uses_new else "serving" if decision.answered_by_site else "base"
        cells = [f"<td>{escape(structure)}</td><td>{MODES[mode]}</td><td>{decision.evidence.base_name}</td>"]
        for name in ("base", "serving", "new"):
            value = f"{decision.dice[name]:.4f}" if name in decision.dice else "&ndash;"
            cells.append(f'<td class="number">{f"<b>{value}</b>" if name == chosen else value}</td>')
        outcome = f"{decision.outcome}, provisional" if decision.provisional else decision.outcome
        cells.append(f'<td class="number">{decision.patients}</td><td>{outcome}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    names = ("structure", "mode", "without the site", "Dice", "serving version", "new version", "patients", "outcome")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table><p>Bold: what answers from now on.</p>"


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
