# SPDX-License-Identifier: Apache-2.0
"""Comparison of two evaluations by one protocol on the same lists: do new weights replace the current ones?

A candidate ships if the mean over the core data sets rises and no data set falls by more than two points. The value of
a data set is the mean of its Dice figures in `COMPARED`; a point is 0.01.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kprism_model.data.datasets import SPLITS
from kprism_model.evaluation.report import EvaluationReport
from kprism_model.evaluation.report_files import load_report

CORE = (
    "hippocampus_mr",
    "montgomery_xray",
    "busi_us",
    "dsb2018_he",
    "dsb2018_fluorescence",
    "kvasir_polyp",
)
"""The data sets whose mean must rise."""

COMPARED = {
    "semantic": ("semantic", "dice_present"),
    "semantic, per case": ("semantic", "dice_case"),
    "1 ref.": ("in_context_1", "dice_present"),
    "5 ref.": ("in_context_5", "dice_present"),
    "1 click": ("interactive", "dice_1"),
    "5 clicks": ("interactive", "dice_5"),
}
"""Title -> mode and name of the figures that count."""

LARGEST_FALL = 0.02
"""A candidate is refused if a data set falls by more than this."""

_REQUIRED = {"modes": {"semantic", "in_context", "interactive"}, "references": {"1", "5"}}
_MAY_DIFFER = ("weights_version", "seconds", "modes")  # figures do not depend on the other modes of a run
_DEFAULTS = {"window": False}  # settings of older reports that do not name them


@dataclass(frozen=True)
class Change:
    """A Dice of the current weights and of the candidate."""

    current: float
    candidate: float

    @property
    def difference(self) -> float:
        """Candidate minus current; rounded, so that rounding errors do not make two points a little more."""
        return round(self.candidate - self.current, 6)

    @property
    def falls(self) -> bool:
        """Whether the candidate is worse by more than `LARGEST_FALL`."""
        return self.difference < -LARGEST_FALL

    @classmethod
    def mean(cls, changes: Sequence[Change]) -> Change:
        """The means of the current values and of the candidate's."""
        current, candidate = ([change.current for change in changes], [change.candidate for change in changes])
        return cls(float(np.mean(current)), float(np.mean(candidate)))

    def __str__(self) -> str:
        return f"{self.current:.3f} → {self.candidate:.3f} ({100 * self.difference:+.1f})"


@dataclass(frozen=True)
class Comparison:
    """Changes by data set and title of the figure, and the data sets whose mean must rise.

    `not_compared` names the figures that only one of the two has.
    """

    changes: Mapping[str, Mapping[str, Change]]
    core: Sequence[str]
    not_compared: Sequence[str] = ()

    @property
    def by_dataset(self) -> dict[str, Change]:
        """The mean over the figures of each data set."""
        return {name: Change.mean(list(figures.values())) for name, figures in self.changes.items()}

    @property
    def mean(self) -> Change:
        """The mean over the core data sets."""
        return Change.mean([self.by_dataset[name] for name in self.core])

    @property
    def ships(self) -> bool:
        """Whether the mean rises and no data set falls by more than two points."""
        return self.mean.difference > 0 and not any(change.falls for change in self.by_dataset.values())

    def verdict(self) -> str:
        """A sentence that says whether the candidate ships, and why."""
        fallen = [f"{name} falls by {_points(change)}" for name, change in self.by_dataset.items() if change.falls]
        mean = f"the mean over {len(self.core)} data sets "
        mean += f"rises by {_points(self.mean)}" if self.mean.difference > 0 else "does not rise"
        if self.ships:
            worst = min(self.by_dataset, key=lambda name: self.by_dataset[name].difference)
            lowest = f"lowest change: {worst} {100 * self.by_dataset[worst].difference:+.1f}"
            return f"The candidate ships: {mean} and no data set falls by more than 2 points ({lowest})."
        reasons = [mean] * (self.mean.difference <= 0) + fallen
        return f"The candidate does not ship: {', '.join(reasons)}."

    def to_markdown(self) -> str:
        """A table of data sets and figures, notable changes, and the verdict."""
        titles = [title for title in COMPARED if any(title in figures for figures in self.changes.values())]
        lines = [f"| data set | {' | '.join(titles)} | mean |", "| --- |" + " ---: |" * (len(titles) + 1)]
        for name, figures in self.changes.items():
            cells = [str(figures[title]) if title in figures else "" for title in titles]
            lines.append(f"| {name} | {' | '.join(cells)} | {self.by_dataset[name]} |")
        cells = [f"**{Change.mean(column)}**" if (column := self._column(title)) else "" for title in titles]
        lines.append(f"| **mean of {len(self.core)}** | {' | '.join(cells)} | **{self.mean}** |")
        fallen = [
            f"- {name}, {title}: falls by {_points(change)}"
            for name, figures in self.changes.items()
            for title, change in figures.items()
            if change.falls
        ]
        if fallen:
            fallen = ["Single figures that fall by more than 2 points (the rule judges their mean):", "", *fallen]
        parts = [lines, fallen, [f"- {sentence}" for sentence in self.not_compared], [self.verdict()]]
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    def _column(self, title: str) -> list[Change]:
        return [self.changes[name][title] for name in self.core if title in self.changes[name]]


def compare(
    current: EvaluationReport, candidate: EvaluationReport, *, core: Sequence[str] = CORE, split: str = "validation"
) -> Comparison:
    """Compare the figures that both evaluations have, class by class.

    ValueError if the two were not measured in the same way on the same cases of the list `split`, if one of the `core`
    data sets is missing, or if the candidate lacks a class or figure that the current weights have.
    """
    _check_alike(current, candidate, core, split)
    changes: dict[str, dict[str, Change]] = {}
    not_compared = []
    for result in current.results:
        for title, (mode, name) in COMPARED.items():
            ours, theirs = (_by_class(report, result.name, mode, name) for report in (current, candidate))
            if lost := [class_name for class_name in ours if class_name not in theirs]:
                raise ValueError(f"the candidate has no figure {title!r} of {result.name}: {', '.join(lost)}")
            if new := [class_name for class_name in theirs if class_name not in ours]:
                not_compared.append(f"{result.name}, {title}: only the candidate has a figure of {', '.join(new)}")
            if ours:
                values = [float(np.mean([dices[class_name] for class_name in ours])) for dices in (ours, theirs)]
                changes.setdefault(result.name, {})[title] = Change(*values)
    if empty := [name for name in core if name not in changes]:
        raise ValueError(f"nothing was measured on {', '.join(empty)}; the mean over {', '.join(core)} needs it")
    return Comparison(changes, tuple(core), not_compared)


def _by_class(report: EvaluationReport, dataset: str, mode: str, name: str) -> dict[str, float]:
    return {
        figure.class_name: figure.value
        for figure in report.figures
        if (figure.dataset, figure.mode, figure.name) == (dataset, mode, name) and figure.value is not None
    }


def _check_alike(current: EvaluationReport, candidate: EvaluationReport, core: Sequence[str], split: str) -> None:
    """ValueError that names the first setting or case in which the two differ, or which one of them lacks."""
    reports = {"current": current, "candidate": candidate}
    for who, report in reports.items():
        if report.protocol.get("split") != split:
            raise ValueError(f"{who}: expected figures of the {split} list, got {report.protocol.get('split')!r}")
        for key, needed in _REQUIRED.items():
            if missing := sorted(needed - set(str(report.protocol.get(key, "")).split())):
                raise ValueError(f"{who}: {key} {', '.join(missing)} not measured; got {report.protocol.get(key)!r}")
        if absent := [name for name in core if name not in {result.name for result in report.results}]:
            raise ValueError(f"{who}: no figures of {', '.join(absent)}; the mean is over {', '.join(core)}")
    for key in sorted({*current.protocol, *candidate.protocol} - set(_MAY_DIFFER)):
        one, other = (report.protocol.get(key, _DEFAULTS.get(key)) for report in reports.values())
        if one != other:
            raise ValueError(f"not measured alike: {key} is {one!r} for current and {other!r} for candidate")
    samples = [{result.name: result.sample for result in report.results} for report in reports.values()]
    for name in sorted({*samples[0], *samples[1]}):
        one, other = (sample.get(name, "nothing") for sample in samples)
        if one != other:
            raise ValueError(f"{name}: not the same cases: {one} for current and {other} for candidate")


def _points(change: Change) -> str:
    return f"{100 * abs(change.difference):.1f} points"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the `compare` command."""
    parser.add_argument("--current", type=Path, required=True, help="evaluation.json of the current weights")
    parser.add_argument("--candidate", type=Path, required=True, help="evaluation.json of the new weights")
    parser.add_argument("--core", nargs="+", default=CORE, metavar="NAME", help="data sets whose mean must rise")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="the list that both were measured on")


def run(args: argparse.Namespace) -> int:
    """Print the comparison; status 0 if the candidate ships, 1 if not."""
    comparison = compare(load_report(args.current), load_report(args.candidate), core=args.core, split=args.split)
    print(comparison.to_markdown())
    return 0 if comparison.ships else 1
