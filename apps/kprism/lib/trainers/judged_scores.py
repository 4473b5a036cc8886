# SPDX-License-Identifier: Apache-2.0
"""Dice by weights and labelled case, kept between trainings, so that only what is new is measured.

For a site version these are figures of cross-validation where the version was trained on the case.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from kprism_model.training.validation import Score, ValidationSettings
from lib.files import read_json, write_json

logger = logging.getLogger(__name__)

SETTINGS = ValidationSettings(shown=4, absent=2, clicked=2, clicks=3, references=3)
"""What is measured in each case."""

MEASURE = f"interactive: mean over clicks; {SETTINGS}"
"""How it is measured; scores of another measure are not comparable."""

Kind = tuple[str, str]
"""A mode and a structure."""


class JudgedScores:
    """Scores in the file at `path`, by the version of the weights and the key of the case (its id and label)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = read_json(path) or {}
        except ValueError as error:
            logger.warning("The scores are measured again: %s", error)
            content = {}
        comparable = content.get("measure") == MEASURE
        self._scores: dict[str, dict[str, dict[str, float]]] = content.get("scores", {}) if comparable else {}

    def missing(self, version: str, keys: Iterable[str], modes: Collection[str], references: int) -> list[str]:
        """The cases that were not measured with these weights in all of these modes, with so many references."""
        known = self._scores.get(version, {})
        return [
            key
            for key in keys
            if not all(known.get(key, {}).get(f"measured {mode}", -1) >= references for mode in modes)
        ]

    def add(
        self, version: str, scores: Sequence[Score], keys: Mapping[str, str], modes: Collection[str], references: int
    ) -> None:
        """Add scores of cases by name; `keys` are the keys of all cases that were measured, by name."""
        known = self._scores.setdefault(version, {})
        for key in keys.values():
            known.setdefault(key, {}).update({f"measured {mode}": float(references) for mode in modes})
        for score in scores:
            known[keys[score.case]][f"{score.mode} {score.structure}"] = round(score.dice, 6)

    def forget(self, version: str) -> None:
        """Drop the scores of these weights."""
        self._scores.pop(version, None)

    def by_patient(self, version: str, kind: Kind, patients: Mapping[str, str]) -> dict[str, float]:
        """Mean Dice by patient of a mode and structure; `patients` by key of the case."""
        known, name = self._scores.get(version, {}), " ".join(kind)
        values: dict[str, list[float]] = {}
        for key, patient in patients.items():
            if name in known.get(key, {}):
                values.setdefault(patient, []).append(known[key][name])
        return {patient: float(np.mean(own)) for patient, own in values.items()}

    def rename(self, version: str, name: str) -> None:
        """Give weights another name, and write the scores."""
        self._scores[name] = self._scores.pop(version)
        self._write()

    def save(self, versions: Collection[str]) -> None:
        """Write the scores of these versions of the weights, and drop all others."""
        self._scores = {version: own for version, own in self._scores.items() if version in versions}
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"measure": MEASURE, "scores": self._scores})
