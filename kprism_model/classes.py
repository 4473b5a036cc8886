# SPDX-License-Identifier: Apache-2.0
"""The registry of semantic classes: labels are exchanged by name, and the network's class table has a row for each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def clean_name(name: str) -> str:
    """A name as it is written: composed letters (NFC), no control characters, no surplus white space.

    macOS decomposes an umlaut in names of files (NFD). Half of a surrogate pair, which JSON can hold and no file can,
    becomes the replacement character.
    """
    if name.isascii() and name.isprintable():
        return " ".join(name.split())
    shown = "".join(_SHOWN.get(unicodedata.category(letter), letter) for letter in name)
    return " ".join(unicodedata.normalize("NFC", shown).split())


_SHOWN = {"Cc": " ", "Cs": "\ufffd"}
"""What stands for letters of these Unicode categories: control characters, surrogates."""


def name_key(name: str) -> str:
    """The form in which names are compared: letter case, white space and how letters are composed do not matter."""
    return unicodedata.normalize("NFC", clean_name(name).casefold())


def _refuse_single_string(names: Iterable[str]) -> None:
    """A string is also an iterable of strings, and would register a class for each letter."""
    if isinstance(names, str):
        raise ValueError(f"class names must be given as a sequence of strings, got the single string {names!r}")


class ClassRegistry:
    """An immutable, ordered set of class names; a name's position is its row in the network's class table.

    Names keep their first spelling, cleaned by `clean_name`; look-ups ignore what `name_key` does.
    Raises ValueError for a name that is empty, not a string, or present twice.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        _refuse_single_string(names)
        cleaned: list[str] = []
        rows: dict[str, int] = {}
        for name in names:
            if not isinstance(name, str) or not clean_name(name):
                raise ValueError(f"a class name must be a non-empty string, got {name!r}")
            if (key := name_key(name)) in rows:
                raise ValueError(f"class {name!r} is listed twice; the first entry is {cleaned[rows[key]]!r}")
            rows[key] = len(cleaned)
            cleaned.append(clean_name(name))
        self._names = tuple(cleaned)
        self._rows = rows

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of their rows."""
        return self._names

    def index(self, name: str) -> int:
        """The row of `name`; ValueError names the value and the known names if there is none."""
        row = self._rows.get(name_key(name)) if isinstance(name, str) else None
        if row is None:
            raise ValueError(f"unknown class {name!r}; known classes: {', '.join(self._names) or '(none)'}")
        return row

    def add(self, names: Iterable[str]) -> ClassRegistry:
        """A new registry with `names` in new rows at the end; every existing name keeps its row."""
        _refuse_single_string(names)
        return ClassRegistry((*self._names, *names))

    def to_list(self) -> list[str]:
        """The names as a JSON-ready list; `ClassRegistry(registry.to_list())` is equal to the registry."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name_key(name) in self._rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassRegistry) and self._names == other._names

    def __hash__(self) -> int:
        return hash(self._names)

    def __repr__(self) -> str:
        return f"ClassRegistry({list(self._names)!r})"
