# SPDX-License-Identifier: Apache-2.0
"""The data sets of the published experiment: their roles, sampling weights and structures (`sets.toml`)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from kprism_model.data.structures import StructureMap, Structures

Role = Literal["trained", "external", "unseen"]

SAME_PATIENTS = ("kits19_ct", "kits23_ct")
"""Two editions of one set, with 210 patients in common; the paper has one of them."""

TABLE = Path(__file__).with_name("sets.toml")


@dataclass(frozen=True)
class PublishedSet:
    """A data set of the experiment: `weight` of each of its slices in training (0 if it is only measured).

    `structures` is None if all of its classes are used as they are.
    """

    name: str
    role: Role
    weight: float
    structures: Structures | None

    def structure_map(self, classes: Mapping[int, str]) -> StructureMap:
        """From the label indices of the data set as it was prepared to the structures of the experiment."""
        if self.structures is None:
            return StructureMap.unchanged(classes)
        try:
            return StructureMap.of(classes, self.structures)
        except ValueError as error:
            raise ValueError(f"data set {self.name}: {error}") from error


@cache
def published_sets() -> Mapping[str, PublishedSet]:
    """The sets of the experiment by name, in the order of the table."""
    return {name: _read(name, entry) for name, entry in tomllib.loads(TABLE.read_text(encoding="utf-8")).items()}


def _read(name: str, entry: Mapping[str, object]) -> PublishedSet:
    role, weight, structures = entry["role"], entry.get("weight", 0.0), entry.get("structures")
    if (
        role not in ("trained", "external", "unseen")
        or not isinstance(weight, float)
        or (role == "trained") != (weight > 0)
    ):
        raise ValueError(f"{TABLE}: {name} has role {role!r} and weight {weight!r}")
    if isinstance(structures, list):
        structures = {structure: [structure] for structure in structures}
    if structures is not None and not isinstance(structures, dict):
        raise ValueError(f"{TABLE}: {name} has structures {structures!r}, expected a list or a table of lists")
    return PublishedSet(name, role, weight, structures)
