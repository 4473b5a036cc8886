# SPDX-License-Identifier: Apache-2.0
"""An evaluation on disk: JSON for programs, Markdown and pictures for people."""

from __future__ import annotations

import json
from pathlib import Path

from kprism_model.evaluation.contact_sheet import contact_sheet
from kprism_model.evaluation.plots import plot_clicks, plot_modes
from kprism_model.evaluation.report import EvaluationReport
from kprism_model.evaluation.report_tables import to_markdown
from kprism_model.files import write_bytes


def save_report(report: EvaluationReport, folder: Path) -> None:
    """Write evaluation.json, evaluation.md and those of modes.png, clicks.png, worst_cases.png that have data."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(folder / "evaluation.json", (text + "\n").encode())
    worst = [case for result in report.results for case in result.worst]
    pictures = {
        "modes.png": plot_modes(report),
        "clicks.png": plot_clicks(report),
        "worst_cases.png": contact_sheet(worst) if worst else None,
    }
    shown = {name: content for name, content in pictures.items() if content is not None}
    for name, content in shown.items():
        write_bytes(folder / name, content)
    write_bytes(folder / "evaluation.md", to_markdown(report, pictures=tuple(shown)).encode())


def load_report(path: Path) -> EvaluationReport:
    """Read an evaluation.json, without the pictures; ValueError that names the file if it has another format."""
    try:
        return EvaluationReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable evaluation: {error}") from error
