# SPDX-License-Identifier: Apache-2.0
"""What `kprism export-dataset` tells of the cases of a folder in provenance.json: patients, and what is labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kprism_model.preparation.findings import Findings
from kprism_model.preparation.own_description import OwnClasses, read_description

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


def classes_of_most(findings: Findings, classes: OwnClasses, exported: Mapping[str, ExportedCase]) -> OwnClasses:
    """The classes that more than half of the labels tell of; the others are remarked, and become background.

    If no class is in more than half of them, those of the commonest kind of label.
    """
    told = [case.structures for case in exported.values() if case.structures is not None]
    if not told or classes.regions:
        return classes
    counts = Counter(name for structures in told for name in structures)
    kept = [name for name in classes.names.values() if 2 * counts[name] > len(told)]
    if not kept:
        ((commonest, _),) = Counter(told).most_common(1)
        kept = [name for name in classes.names.values() if name in commonest]
    for name in classes.names.values():
        if name not in kept:
            findings.remark("ignored", f"{name}: only {counts[name]} of {len(told)} labels tell of it; it is no class")
    new = {index: kept.index(name) + 1 if name in kept else 0 for index, name in classes.names.items()}
    indices = {value: new[index] for value, index in classes.indices.items()}
    return replace(classes, names=dict(enumerate(kept, start=1)), indices=indices)
