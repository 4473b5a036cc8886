# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation: figures, curves, notes and the worst cases of each data set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kprism_model.evaluation.contact_sheet import WorstCase

FORMAT_VERSION = 2

POOLED = ("false_positive_rate", "detection_rate")
"""Shares over all predictions of a data set; other figures are means over its classes."""


@dataclass(frozen=True)
class Figure:
    """One measured value: mean over `count` slices or cases, `std` over draws of references; None if undefined."""

    dataset: str
    class_name: str
    mode: str
    name: str
    value: float | None
    count: int
    std: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Curve:
    """Means over objects: Dice after 0, 1, ... clicks; share of objects at Dice 0.90 within 0, 1, ... clicks."""

    dataset: str
    class_name: str
    mode: str
    dice: list[float]
    reached: list[float]


@dataclass
class DatasetResult:
    """All results on one data set.

    `sample` says how many cases and slices were measured. `trained` says whether the network knows "all", "some" or
    "none" of the classes. `notes` say what was left out and why.
    """

    name: str
    sample: str
    trained: str
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    worst: list[WorstCase] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content without the pictures; undefined values are None."""
        return {
            "name": self.name,
            "sample": self.sample,
            "trained": self.trained,
            "figures": [asdict(figure) for figure in self.figures],
            "curves": [asdict(curve) for curve in self.curves],
            "notes": self.notes,
            "worst": [case.describe() for case in self.worst],
        }


@dataclass
class EvaluationReport:
    """All results of a run; `protocol` says how they were measured."""

    protocol: dict[str, Any]
    results: list[DatasetResult] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """The figures of all data sets."""
        return [figure for result in self.results for figure in result.figures]

    def figure(self, dataset: str, class_name: str, mode: str, name: str) -> Figure | None:
        """One figure; None if it was not measured."""
        wanted = (dataset, class_name, mode, name)
        return next((f for f in self.figures if (f.dataset, f.class_name, f.mode, f.name) == wanted), None)

    def value(self, dataset: str, class_name: str, mode: str, name: str) -> float | None:
        """The value of one figure; if it was not measured, ValueError names the measured ones."""
        figure = self.figure(dataset, class_name, mode, name)
        if figure is None:
            known = sorted({(f.dataset, f.class_name, f.mode) for f in self.figures})
            raise ValueError(f"no figure {name!r} of {(dataset, class_name, mode)}; expected one of {known}")
        return figure.value

    def by_dataset(self, mode: str, name: str) -> dict[str, float]:
        """The mean over classes for each data set that has the figure; over all predictions for `POOLED` figures."""
        weighted: dict[str, list[tuple[float, int]]] = {}
        for figure in self.figures:
            if figure.mode == mode and figure.name == name and figure.value is not None:
                weight = figure.count if name in POOLED else 1
                weighted.setdefault(figure.dataset, []).append((figure.value, weight))
        return {
            dataset: float(np.average([value for value, _ in pairs], weights=[weight for _, weight in pairs]))
            for dataset, pairs in weighted.items()
        }

    def mean(self, mode: str, name: str, datasets: Collection[str] | None = None) -> float | None:
        """Mean over data sets (by default all) of the mean over classes; None if there is no value."""
        values = [value for key, value in self.by_dataset(mode, name).items() if datasets is None or key in datasets]
        return float(np.mean(values)) if values else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content without the pictures."""
        return {
            "format_version": FORMAT_VERSION,
            "protocol": self.protocol,
            "datasets": [result.to_dict() for result in self.results],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> EvaluationReport:
        """The inverse of `to_dict`, without the pictures; ValueError for another format."""
        if content.get("format_version") != FORMAT_VERSION:
            version = content.get("format_version")
            raise ValueError(f"an evaluation has format_version {version!r}, expected {FORMAT_VERSION}")
        return cls(content["protocol"], [result_from_dict(result) for result in content["datasets"]])


def result_from_dict(content: dict[str, Any]) -> DatasetResult:
    """The inverse of `DatasetResult.to_dict`, without the pictures."""
    return DatasetResult(
        content["name"],
        content["sample"],
        content["trained"],
        [Figure(**figure) for figure in content["figures"]],
        [Curve(**curve) for curve in content["curves"]],
        content["notes"],
    )
