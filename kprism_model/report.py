# SPDX-License-Identifier: Apache-2.0
"""The outcome of an evaluation: figures as JSON, as Markdown tables for people, and pictures of the worst cases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kprism_model.contact_sheet import WorstCase, contact_sheet

FORMAT_VERSION = 1

MODE_TITLES = {
    "semantic": "Semantic",
    "interactive": "Interactive: clicks by the simulated annotator",
    "scribble+interactive": "Interactive after a human scribble",
    "semantic+interactive": "Chained: clicks after a semantic first mask",
}

FIGURE_TITLES = {
    "dice_present": "Dice where present",
    "dice_case": "Dice per case",
    "hd95": "HD95",
    "dice_first": "Dice of the first mask",
    "dice_1": "Dice, 1 click",
    "dice_3": "3 clicks",
    "dice_5": "5 clicks",
    "noc85": "NoC85",
    "noc85_failed": "failed",
    "noc90": "NoC90",
    "noc90_failed": "failed",
}

READING = """\
- Dice where present: per slice, where the structure is (the paper's protocol). Dice per case: over all slices of a
  volume or picture, structures that are absent included (empty on both sides counts 1, a false positive 0); a mask
  whose presence is below 0.5 counts as empty, there and in HD95.
- HD95: per case, in mm by the spacing in the file's header for volumes, in pixels for pictures; cases where one side
  is empty have none and are left out.
- In-context figures are mean ± standard deviation over draws of references from other patients of the training list.
- NoC: mean number of clicks to that Dice; failures count as the limit, and their share stands beside.
- In brackets: how many slices or cases a figure is the mean of. The last row of a table is the mean over data sets, of
  the mean over each one's classes."""


@dataclass(frozen=True)
class Figure:
    """One measured value: the mean over `count` slices or cases; `std` over draws of references; None: undefined."""

    dataset: str
    class_name: str
    mode: str
    name: str
    value: float | None
    count: int
    std: float | None = None
    unit: str = ""


@dataclass
class EvaluationReport:
    """All figures of a run; `protocol` says how they were measured, `notes` what was left out and why."""

    protocol: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    worst: list[WorstCase] = field(default_factory=list)

    def value(self, dataset: str, class_name: str, mode: str, name: str) -> float | None:
        """The value of one figure; ValueError names what there is if it was not measured."""
        figure = self._find(dataset, class_name, mode, name)
        if figure is None:
            known = sorted({(f.dataset, f.class_name, f.mode) for f in self.figures})
            raise ValueError(f"no figure {name!r} of {(dataset, class_name, mode)}; measured were {known}")
        return figure.value

    def mean(self, mode: str, name: str) -> float | None:
        """Mean over data sets of the mean over classes; None where nothing defined was measured."""
        by_dataset: dict[str, list[float]] = {}
        for figure in self.figures:
            if figure.mode == mode and figure.name == name and figure.value is not None:
                by_dataset.setdefault(figure.dataset, []).append(figure.value)
        return float(np.mean([np.mean(values) for values in by_dataset.values()])) if by_dataset else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content without the pictures; undefined values are None."""
        worst = [case.describe() for case in self.worst]
        figures = [asdict(figure) for figure in self.figures]
        return {
            "format_version": FORMAT_VERSION,
            "protocol": self.protocol,
            "figures": figures,
            "notes": self.notes,
            "worst": worst,
        }

    def to_markdown(self) -> str:
        """A heading, the protocol, one table a mode, notes, and how to read the figures."""
        modes = list(dict.fromkeys(figure.mode for figure in self.figures))
        settings = ", ".join(f"{key} {value}" for key, value in self.protocol.items() if key != "datasets")
        samples = [f"- {name}: {text}" for name, text in self.protocol.get("datasets", {}).items()]
        parts = ["# Evaluation", settings + ".", "\n".join(samples)]
        parts += [self._table(mode) for mode in modes]
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join([*parts, READING]) + "\n"

    def save(self, folder: Path) -> None:
        """Write evaluation.json, evaluation.md and, if there are any, worst_cases.png into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        _replace(folder / "evaluation.json", (text + "\n").encode())
        _replace(folder / "evaluation.md", self.to_markdown().encode())
        if self.worst:
            _replace(folder / "worst_cases.png", contact_sheet(self.worst))

    def _find(self, dataset: str, class_name: str, mode: str, name: str) -> Figure | None:
        wanted = (dataset, class_name, mode, name)
        return next((f for f in self.figures if (f.dataset, f.class_name, f.mode, f.name) == wanted), None)

    def _table(self, mode: str) -> str:
        measured = {figure.name for figure in self.figures if figure.mode == mode}
        names = [name for name in FIGURE_TITLES if name in measured]
        rows = list(dict.fromkeys((f.dataset, f.class_name) for f in self.figures if f.mode == mode))
        lines = [_row(["data set", "class", *(FIGURE_TITLES[name] for name in names)])]
        lines.append(_row(["---", "---", *("---:" for _ in names)]))
        for dataset, class_name in rows:
            figures = [self._find(dataset, class_name, mode, name) for name in names]
            lines.append(
                _row([dataset, class_name, *(_cell(figure, name) for figure, name in zip(figures, names, strict=True))])
            )
        means = ["" if name == "hd95" else _number(self.mean(mode, name), name) for name in names]
        lines.append(_row(["**mean**", "", *means]))
        return f"## {mode_title(mode)}\n\n" + "\n".join(lines)


def mode_title(mode: str) -> str:
    """The heading of a mode, such as "in_context_5+interactive"."""
    if mode in MODE_TITLES:
        return MODE_TITLES[mode]
    count = mode.removeprefix("in_context_").removesuffix("+interactive")
    references = f"{count} reference{'s' if count != '1' else ''}"
    return f"Chained: clicks after a first mask from {references}" if "+" in mode else f"In-context, {references}"


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
    if name.endswith("_failed"):
        return f"{100 * value:.0f} %"
    return f"{value:.3f}" if name.startswith("dice") else f"{value:.1f}"


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
