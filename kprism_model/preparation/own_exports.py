# SPDX-License-Identifier: Apache-2.0
"""What `kprism export-dataset` tells of the cases of a folder in provenance.json: patients, and what is labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kprism_model.preparation.own_description import read_description

PROVENANCE_NAME = "provenance.json"


@dataclass(frozen=True)
class ExportedCase:
    """`structures` are those that the label tells of; None if that is not stated."""

    patient: str
    structures: frozenset[str] | None

    def untold(self, classes: Sequence[str]) -> list[str]:
        """The classes that the label says nothing about."""
        return [] if self.structures is None else [name for name in classes if name not in self.structures]


def exported_cases(folder: Path) -> Mapping[str, ExportedCase]:
    """The cases of a folder's provenance.json by name; empty if it has none, or one of another program."""
    path = folder / PROVENANCE_NAME
    if not path.is_file():
        return {}
    cases = read_description(path).get("cases")
    found: dict[str, ExportedCase] = {}
    for entry in cases if isinstance(cases, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("case"), str) and "patient" in entry:
            structures = entry.get("structures")
            told = frozenset(map(str, structures)) if isinstance(structures, list) else None
            found[entry["case"]] = ExportedCase(f"patient {entry['patient']}", told)
    return found
