# SPDX-License-Identifier: Apache-2.0
"""The rows of the published table: data sets by role and the mean of each role, measured beside published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kprism_model.published.evaluation.evaluate import SetResult
from kprism_model.published.evaluation.printed_figures import OURS, Printed, PrintedFigure
from kprism_model.published.evaluation.protocol import PublishedProtocol
from kprism_model.published.evaluation.set_measurement import (
    AFTER_IN_CONTEXT,
    AFTER_SEMANTIC,
    IN_CONTEXT,
    INTERACTIVE,
    SEMANTIC,
)
from kprism_model.published.sets import SAME_PATIENTS, published_sets

ROLES = {
    "trained": ("trained sets", 12),
    "external": ("external sets", 4),
    "unseen": ("sets with unseen structures", 2),
    "other": ("other sets", 0),
}
"""Role -> its title, and how many sets the paper has; "other" are sets that are not in the paper."""


COLUMNS = (
    ("semantic", SEMANTIC, "dice"),
    ("in-context", IN_CONTEXT, "dice"),
    ("Dice(1)", INTERACTIVE, "dice_1"),
    ("Dice(5)", INTERACTIVE, "dice_5"),
    ("NoC85", INTERACTIVE, "noc85"),
    ("NoC90", INTERACTIVE, "noc90"),
    ("NoC95", INTERACTIVE, "noc95"),
    ("NoC90 after semantic", AFTER_SEMANTIC, "noc90"),
    ("NoC90 after in-context", AFTER_IN_CONTEXT, "noc90"),
)
"""Title, mode and metric of the columns."""


@dataclass(frozen=True)
class Measured:
    """A measured value; `spread` over draws of references; `part`: what it is the mean of, if something is missing."""

    value: float
    spread: float | None = None
    part: str = ""


@dataclass(frozen=True)
class Row:
    """A data set, or the mean of a role: what is measured and published in each of `COLUMNS`; None if there is none."""

    name: str
    role: str
    is_mean: bool
    measured: Sequence[Measured | None]
    published: Sequence[PrintedFigure | None]


@dataclass(frozen=True)
class Comparison:
    """The results of a checkpoint beside published figures; `native_size` is the long side of its images in pixels."""

    results: Sequence[SetResult]
    printed: Printed
    protocol: PublishedProtocol
    weights_version: str
    native_size: int

    def rows(self) -> list[Row]:
        """By role: sets that are measured or have a published figure, in the paper's order, then the role's mean."""
        return [row for role in ROLES for row in self._rows_of(role)]

    def result(self, name: str) -> SetResult | None:
        """The results on a set; None if it was not measured."""
        return next((one for one in self.results if one.name == name), None)

    def measured(self, sets: str, mode: str, metric: str) -> Measured | None:
        """The measured value of a set, or the mean over the measured sets of a role."""
        if sets in ROLES:
            found = [one for result in self._averaged(sets) if (one := self.measured(result.name, mode, metric))]
            of = ROLES[sets][1]
            lacking = [f"{len(found)} of {of} sets"] if len(found) != of else []
            lacking += [f"{parts} in part"] if (parts := sum(bool(one.part) for one in found)) else []
            mean = float(np.mean([one.value for one in found])) if found else 0.0
            return Measured(mean, None, ", ".join(lacking)) if found and of else None
        result = self.result(sets)
        figure = None if result is None else result.figure(mode, metric)
        if result is None or figure is None:
            return None
        structures = len(set(result.counts.structure.tolist()))
        part = (
            "" if len(figure.by_structure) == structures else f"{len(figure.by_structure)} of {structures} structures"
        )
        return Measured(figure.value, figure.spread, part)

    def published(self, method: str, sets: str, mode: str, metric: str) -> PrintedFigure | None:
        """A published figure with as many references as were measured."""
        return self.printed.find(method, mode, sets, metric, self.protocol.references)

    def notes(self) -> Iterator[str]:
        """What was left out, and why."""
        for result in self.results:
            yield from result.notes
        if all(self.result(name) for name in SAME_PATIENTS):
            yield "kits19_ct is not in the mean of the trained sets: 210 of its patients are in kits23_ct too"

    def to_dict(self) -> dict[str, Any]:
        """The measured sets and the means of the roles, JSON-ready."""
        means = []
        for role, (_, of) in ROLES.items():
            names = [result.name for result in self._averaged(role)]
            for _, mode, metric in COLUMNS:
                if mean := self.measured(role, mode, metric):
                    used = [name for name in names if self.measured(name, mode, metric)]
                    means.append({"sets": role, "mode": mode, "metric": metric, "value": mean.value, "of": used})
                    means[-1]["sets_of_the_paper"] = of
        return {"datasets": [result.to_dict() for result in self.results], "means": means, "notes": list(self.notes())}

    def _rows_of(self, role: str) -> Iterator[Row]:
        names = [name for name, one in published_sets().items() if one.role == role]
        names += [result.name for result in self.results if result.role == role and result.name not in names]
        for name in names:
            row = self._row(name, role)
            if self.result(name) or any(row.published):
                yield row
        if role != "other":
            yield self._row(role, role, is_mean=True)

    def _row(self, sets: str, role: str, *, is_mean: bool = False) -> Row:
        places = [(sets, mode, metric) for _, mode, metric in COLUMNS]
        measured = [self.measured(*place) for place in places]
        return Row(sets, role, is_mean, measured, [self.published(OURS, *place) for place in places])

    def _averaged(self, role: str) -> list[SetResult]:
        """The measured sets of a role, each patient in one of them."""
        doubled = SAME_PATIENTS[0] if all(self.result(name) for name in SAME_PATIENTS) else ""
        return [result for result in self.results if result.role == role and result.name != doubled]
