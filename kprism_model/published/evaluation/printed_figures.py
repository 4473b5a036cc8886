# SPDX-License-Identifier: Apache-2.0
"""Published figures of K-Prism and its rivals, each with its source and conditions (`figures.toml`)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from kprism_model.published.evaluation.clicks import DICE_CLICKS, NOC_THRESHOLDS
from kprism_model.published.evaluation.set_measurement import (
    AFTER_IN_CONTEXT,
    AFTER_SEMANTIC,
    IN_CONTEXT,
    INTERACTIVE,
    SEMANTIC,
)
from kprism_model.published.sets import Role, published_sets

FIGURES = Path(__file__).with_name("figures.toml")

OURS = "K-Prism"
"""The method of the paper; all others are its rivals."""

_CLICK_METRICS = tuple(f"dice_{n}" for n in DICE_CLICKS) + tuple(f"noc{100 * t:.0f}" for t in NOC_THRESHOLDS)
METRICS = {
    **dict.fromkeys((SEMANTIC, IN_CONTEXT), ("dice",)),
    **dict.fromkeys((INTERACTIVE, AFTER_SEMANTIC, AFTER_IN_CONTEXT), _CLICK_METRICS),
}
"""Mode -> its metrics."""


@dataclass(frozen=True)
class PrintedFigure:
    """A published figure: Dice in percent, or a number of clicks.

    `sets` is a role (the mean over its sets) or the name of a set. `source` and `conditions` are keys of `Printed`.
    """

    method: str
    mode: str
    sets: str
    metric: str
    value: float
    source: str
    spread: float | None = None
    references: int = 1
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Printed:
    """Published figures, what their sources are ("kind", "what", "address") and what is known of their conditions."""

    figures: Sequence[PrintedFigure]
    sources: Mapping[str, Mapping[str, str]]
    conditions: Mapping[str, str]

    def find(self, method: str, mode: str, sets: str, metric: str, references: int = 1) -> PrintedFigure | None:
        """A figure; None if it is not available. `references` counts only in the modes that have some."""
        return next(
            (
                one
                for one in self.figures
                if (one.method, one.mode, one.sets, one.metric) == (method, mode, sets, metric)
                and (mode not in (IN_CONTEXT, AFTER_IN_CONTEXT) or one.references == references)
            ),
            None,
        )


def read_printed(path: Path = FIGURES) -> Printed:
    """Read published figures; ValueError names the file, the figure and what was expected."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        entries, sources, conditions = content["figures"]["values"], content["sources"], content["conditions"]
        figures = [_figure(entry, sources, conditions) for entry in entries]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a table of published figures: {error}") from error
    places = [(one.method, one.mode, one.sets, one.metric, one.references) for one in figures]
    if repeated := [place for place in places if places.count(place) > 1]:
        raise ValueError(f"{path} has two figures for {repeated[0]}")
    return Printed(figures, sources, conditions)


def _figure(entry: Mapping[str, Any], sources: Mapping[str, Any], conditions: Mapping[str, Any]) -> PrintedFigure:
    required = {"method", "mode", "sets", "metric", "value", "source"}
    allowed = {field.name for field in fields(PrintedFigure)}
    if not required <= set(entry) <= allowed:
        wrong = sorted(required - set(entry)) or sorted(set(entry) - allowed)
        raise ValueError(
            f"{dict(entry)}: {', '.join(wrong)}; expected {sorted(required)} and perhaps others of {allowed}"
        )
    for name, given, expected in (
        ("mode", entry["mode"], list(METRICS)),
        ("metric", entry["metric"], METRICS.get(entry["mode"], ())),
        ("sets", entry["sets"], [*get_args(Role), *published_sets()]),
        ("source", entry["source"], list(sources)),
        *(("conditions", one, list(conditions)) for one in entry.get("conditions", ())),
    ):
        if given not in expected:
            raise ValueError(f"{dict(entry)}: unknown {name} {given!r}; expected one of {', '.join(expected)}")
    numbers = [entry["value"], entry.get("spread", 0.0), entry.get("references", 1)]
    if not all(isinstance(number, int | float) and 0 <= number <= 100 for number in numbers):
        raise ValueError(f"{dict(entry)}: value, spread and references must be numbers from 0 to 100")
    return PrintedFigure(**{**entry, "conditions": tuple(entry.get("conditions", ()))})
