# SPDX-License-Identifier: Apache-2.0
"""Names of structures: the meaning of the values in a label file, and the number of a name in our answers.

The values of a saved label are named in one of three ways; the first that exists is used:

1. `label_names`, name -> value, as in our own answers (also in `params`, where MONAI Label stores answers);
2. `label_info`, a list of `{"name": ...}` in the order of the values, as 3D Slicer sends it;
3. `labels.json` in the datastore's folder, written by hand. `labels` applies to every label file, `cases` to those
   whose image id matches the pattern:

       {"labels": {"1": "liver", "2": "spleen"}, "cases": {"brain*": {"1": "tumour"}}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Any

from kprism_model.classes import ClassRegistry
from lib.errors import RequestError

BACKGROUND = "background"
"""Not a label: the name of the list of negative clicks."""

LABEL_FILE = "labels.json"


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
                if name.strip() and name not in self._names and name.strip().casefold() != BACKGROUND:
                    self._names = self._names.add([name])

    def numbers(self, names: Sequence[str]) -> dict[str, int]:
        """The numbers of names, from 1; names that are not registered get the next numbers, for this answer only."""
        known = self._names
        unknown = [name for name in names if name not in known]
        return {
            name: known.index(name) + 1 if name in known else len(known) + 1 + unknown.index(name) for name in names
        }

    def canonical(self, name: str) -> str:
        """The name as it was first written; an unknown name without surplus white space."""
        return self._names.names[self._names.index(name)] if name in self._names else " ".join(name.split())

    def name(self, number: Any) -> str:
        """The name of a number; RequestError for a number without a name."""
        names = self._names.names
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(names):
            raise RequestError(f"label_prompt holds {number!r}; expected label numbers from 1 to {len(names)}")
        return names[number - 1]

    def indices(self) -> dict[str, int]:
        """MONAI Label's `labels`: name -> number from 1, without background."""
        return {name: row for row, name in enumerate(self._names.names, 1)}


def label_values(info: Mapping[str, Any], by_hand: Mapping[str, int], present: Sequence[int]) -> dict[str, int]:
    """Name -> value for a label file with the metadata `info` and the non-zero values `present`, ascending.

    Slicer's `idx` also counts segments that it did not save, so it is not used. Names belong to values in their order:
    to the values that occur if there are as many, else to 1, 2, ... (a segment may be empty). The result is empty if
    nothing names the values. RequestError if there are fewer names than values.
    """
    names = stored_names(info)
    if isinstance(names, Mapping):
        return dict(names)
    if names is None:
        return dict(by_hand)
    if len(names) == len(present):
        return dict(zip(names, present, strict=True))
    if present and max(present) > len(names):
        raise RequestError(
            f"label_info names {len(names)} structures ({', '.join(names)}), but the file holds {present}"
        )
    return {name: value for value, name in enumerate(names, 1)}


def stored_names(info: Mapping[str, Any]) -> Mapping[str, int] | list[str] | None:
    """The names in a label's metadata: name -> value, names in the order of values, or None if there are no names."""
    params = info.get("params")
    for source in (info, params if isinstance(params, Mapping) else {}):
        names = source.get("label_names")
        if isinstance(names, Mapping) and names:
            return {
                name: value
                for name, value in names.items()
                if isinstance(value, int) and value > 0 and name.casefold() != BACKGROUND
            }
        listed = source.get("label_info")
        if isinstance(listed, Sequence) and listed:
            entries = [str(entry["name"]) for entry in listed if isinstance(entry, Mapping) and entry.get("name")]
            return [name for name in entries if name.casefold() != BACKGROUND]
    return None


@dataclass(frozen=True)
class HandNames:
    """The content of a datastore's `labels.json`: names for all label files, and by pattern of the image id."""

    labels: Mapping[str, int]
    cases: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, folder: Path) -> HandNames:
        """Read the folder's file, if it exists; RequestError names the file and the entry that cannot be used."""
        path = folder / LABEL_FILE
        if not path.is_file():
            return cls({}, {})
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise RequestError(f"{LABEL_FILE} of the datastore is not JSON: {error}") from error
        if not isinstance(content, Mapping) or not isinstance(content.get("cases", {}), Mapping):
            raise RequestError(f'{LABEL_FILE} of the datastore must be an object with "labels" or "cases"')
        cases = {pattern: _parse_entry(names) for pattern, names in content.get("cases", {}).items()}
        return cls(_parse_entry(content.get("labels", {})), cases)

    def of(self, image_id: str) -> Mapping[str, int]:
        """Name -> value in the label of an image, by the first pattern that matches."""
        return next((names for pattern, names in self.cases.items() if fnmatchcase(image_id, pattern)), self.labels)


def _parse_entry(entry: Any) -> dict[str, int]:
    """{"1": "liver"} or {"liver": 1} -> {"liver": 1}, without the background."""
    if not isinstance(entry, Mapping):
        raise RequestError(f'{LABEL_FILE} of the datastore: expected {{"1": "name", ...}}, got {entry!r}')
    names: dict[str, int] = {}
    for key, other in entry.items():
        value, name = (other, key) if isinstance(other, int) else (key, other)
        if not str(value).isdigit() or not isinstance(name, str) or not name.strip():
            raise RequestError(f'{LABEL_FILE} of the datastore: expected {{"1": "name", ...}}, got {key!r}: {other!r}')
        if int(value) > 0:
            names[name] = int(value)
    return names
