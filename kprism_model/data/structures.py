# SPDX-License-Identifier: Apache-2.0
"""What an experiment uses of a data set: some of its classes, or several of them joined to one structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Structures = Mapping[str, Sequence[str]]
"""Name of a structure -> the classes of the data set that it consists of."""


@dataclass(frozen=True)
class StructureMap:
    """`classes`: new label index -> structure. `table`: uint8 (256,), the new index of each old one, else 0."""

    classes: dict[int, str]
    table: NDArray[np.uint8]

    @classmethod
    def of(cls, classes: Mapping[int, str], structures: Structures) -> StructureMap:
        """Map a data set's `classes` (label index -> name) to `structures`, in their order from index 1 on.

        Classes that no structure names become background: nothing is said about them. ValueError for a class that the
        data set lacks or that two structures name.
        """
        indices = {name.casefold(): index for index, name in classes.items()}
        table = np.zeros(256, dtype=np.uint8)
        for number, (structure, parts) in enumerate(structures.items(), start=1):
            for part in parts:
                if part.casefold() not in indices:
                    raise ValueError(
                        f"structure {structure!r}: there is no class {part!r}, only {sorted(classes.values())}"
                    )
                index = indices[part.casefold()]
                if table[index]:
                    raise ValueError(f"structure {structure!r}: class {part!r} belongs to another structure already")
                table[index] = number
        return cls(dict(enumerate(structures, start=1)), table)

    @classmethod
    def unchanged(cls, classes: Mapping[int, str]) -> StructureMap:
        """All classes as they are."""
        return cls(dict(classes), np.arange(256, dtype=np.uint8))

    def apply(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A label map (any shape) with the new indices."""
        mapped: NDArray[np.uint8] = self.table[labels]
        return mapped
