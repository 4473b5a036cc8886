# SPDX-License-Identifier: Apache-2.0
"""`labels.json` in the folder of studies, written by hand: names of the values in label files that name none.

`labels` applies to every label file, `cases` to those whose image id is the key or matches it as a pattern:

    {"labels": {"1": "liver", "2": "spleen"}, "cases": {"brain*": {"1": "tumour"}}}

An entry may also be name -> value, or name -> list of values. Several values may have one name, in any of these ways.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unicodedata import normalize

from kprism_model.classes import clean_name
from lib.errors import RequestError
from lib.imaging.label_names import add_name, as_number

LABEL_FILE = "labels.json"

_TIME_RESOLUTION_NS = 2_000_000_000  # two changes within this time may give a file the same time

_WHERE = f"{LABEL_FILE} of the datastore"


@dataclass(frozen=True)
class HandNames:
    """The content of a `labels.json`: value -> name for all label files, and by pattern (NFC) of the image id."""

    labels: Mapping[int, str] = field(default_factory=dict)
    cases: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> HandNames:
        """Read the folder's file, if it exists; RequestError names the file and the entry that cannot be used.

        A file that has not changed is not read again: all cases of a folder ask for it.
        """
        path = folder / LABEL_FILE
        try:
            status = path.stat()
        except OSError:
            return cls()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = _known.get(path)
        if known is None or known[0] != stamp or time.time_ns() - status.st_mtime_ns < _TIME_RESOLUTION_NS:
            known = _known[path] = stamp, cls._read(path)
        return known[1]

    @classmethod
    def _read(cls, path: Path) -> HandNames:
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows editors put a mark before the text
            content = json.loads(text, object_pairs_hook=_Object)
        except (ValueError, RecursionError, OSError) as error:
            raise RequestError(f"{_WHERE} is not JSON: {error}") from error
        parts = content.once(("labels", "cases")) if isinstance(content, _Object) else {}
        patterns = parts.get("cases", _Object())
        names_nothing = bool(parts) and not parts.keys() & {"labels", "cases"}
        if not isinstance(content, _Object) or not isinstance(patterns, _Object) or names_nothing:
            raise RequestError(f'{_WHERE} must be an object with "labels" or "cases"')
        cases = {normalize("NFC", pattern): _parse(entry) for pattern, entry in patterns.once().items()}
        return cls(_parse(parts.get("labels", _Object())), cases)

    def of(self, image_id: str) -> Mapping[int, str]:
        """Value -> name in an image's label: by its id, which may hold brackets, or the first pattern that fits."""
        image_id = normalize("NFC", image_id)  # macOS decomposes umlauts in names of files, and editors do not
        if image_id in self.cases:
            return self.cases[image_id]
        return next((names for pattern, names in self.cases.items() if fnmatchcase(image_id, pattern)), self.labels)


_known: dict[Path, tuple[tuple[int, int, int], HandNames]] = {}


class _Object(list[tuple[str, Any]]):
    """A JSON object as it is written: a dictionary would drop all but the last of repeated keys."""

    def once(self, keys: tuple[str, ...] = ()) -> dict[str, Any]:
        """The pairs, of `keys` alone if given; RequestError for a key that is there twice."""
        found: dict[str, Any] = {}
        for key, value in self:
            if key in found and (not keys or key in keys):
                raise RequestError(f"{_WHERE} holds {key!r} twice; expected it once")
            found[key] = value
        return found


def _parse(entry: Any) -> dict[int, str]:
    """{"1": "liver"}, {"liver": 1} or {"liver": [1, 2]} -> {1: "liver", ...}, without the value 0."""
    if not isinstance(entry, _Object):
        raise RequestError(f'{_WHERE}: expected {{"1": "name", ...}}, got {entry!r}')
    names: dict[int, str] = {}
    for key, other in entry:
        for value, name in _pairs(key, other):
            if value is None or value < 0 or not isinstance(name, str) or not clean_name(name):
                raise RequestError(f'{_WHERE}: expected {{"1": "name", ...}}, got {key!r}: {other!r}')
            if value > 0:
                add_name(names, value, name, _WHERE)
    return names


def _pairs(key: str, other: Any) -> list[tuple[int | None, Any]]:
    """The (value, name) of an entry; None for a value that is no number."""
    if isinstance(other, list) and not isinstance(other, _Object):
        return [(as_number(value), key) for value in other] or [(None, key)]
    if isinstance(other, int | float):
        return [(as_number(other), key)]
    if isinstance(other, str) and as_number(key) is None:
        return [(as_number(other), key)]
    return [(as_number(key), other)]
