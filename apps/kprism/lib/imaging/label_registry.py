# SPDX-License-Identifier: Apache-2.0
"""Names of structures and the number of a name in our answers. `label_names` reads the names of a label file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

from kprism_model.classes import ClassRegistry, clean_name, name_key
from lib.errors import RequestError

BACKGROUND = "background"
"""Not a label: the name of the list of negative clicks."""


class LabelRegistry:
    """The number of every name, for answers and MONAI Label's `labels`. Numbers never change; new names are appended.

    The names that the weights know come first, so a class has the same number in every model.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = ClassRegistry()
        self._lock = Lock()
        self.add(names)

    def add(self, names: Iterable[str]) -> None:
        """Append the names that are not known yet."""
        with self._lock:
            for name in names:
                if clean_name(name) and name not in self._names and name_key(name) != BACKGROUND:
                    self._names = self._names.add([name])

    def numbers(self, names: Sequence[str]) -> dict[str, int]:
        """The numbers of names, from 1; names that are not registered get the next numbers, for this answer only."""
        known = self._names
        unknown = [name for name in names if name not in known]
        return {
            name: known.index(name) + 1 if name in known else len(known) + 1 + unknown.index(name) for name in names
        }

    def canonical(self, name: str) -> str:
        """The name as it was first written; an unknown name cleaned (see `kprism_model.classes.clean_name`)."""
        return self._names.names[self._names.index(name)] if name in self._names else clean_name(name)

    def name(self, number: Any) -> str:
        """The name of a number; RequestError for a number without a name."""
        names = self._names.names
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(names):
            raise RequestError(f"label_prompt holds {number!r}; expected label numbers from 1 to {len(names)}")
        return names[number - 1]

    def indices(self) -> dict[str, int]:
        """MONAI Label's `labels`: name -> number from 1, without background."""
        return {name: row for row, name in enumerate(self._names.names, 1)}
