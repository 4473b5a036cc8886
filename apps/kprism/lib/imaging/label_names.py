# SPDX-License-Identifier: Apache-2.0
"""Names of the values in a label file. This is the one place that reads them, for every route and every file.

The values are named in one of these ways; the first that exists is used:

1. the file itself (the segments of a `.seg.nrrd`); what a client sends beside it must agree;
2. `label_names`, name -> value, as in our own answers (also in `params`, where MONAI Label stores answers);
3. `label_info`, a list of `{"name": ..., "id": ...}`, see `_listed`;
4. `labels.json` in the folder of studies, see `hand_names`.

Several values may have one name: all of them are the structure. No value may have two names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kprism_model.classes import clean_name, name_key
from lib.errors import RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.label_registry import BACKGROUND

NUMBERS = ("id", "idx", "labelID", "label")
"""Keys of an entry of `label_info` that may hold the value; some clients have the name under `label`."""

SLICER = "idx"
"""3D Slicer's key. It counts all segments, also those that are not saved, while the values are 1, 2, ... of those that
are saved."""

MAX_DIGITS = 20
"""Digits of a number that is sent as text."""

MAX_SHOWN = 12
"""Values that a message lists."""

_EXPECTED = 'expected a list of {"name": ..., "id": ...}, one a segment'


def value_names(
    info: Mapping[str, Any],
    by_hand: Mapping[int, str],
    present: Iterable[int],
    file: FileLabels | None = None,
    *,
    partial: bool = False,
) -> dict[int, str]:
    """Value -> name for a label file with the metadata `info` and the non-zero values `present`, as they were read.

    Values that are not in the file may be named too, and values in it may be nameless. A value that is called
    "background" is no structure (`structures` leaves it out). The result is empty if nothing names the values.

    RequestError if the names contradict each other or the file. With `partial`, `label_info` may name some of the
    file's values only.
    """
    file = file or FileLabels()
    there = file.in_file(present)
    if file.names is None:
        sent = _sent(info, there, partial)
        return file.as_read(by_hand if sent is None else sent)
    _check_agreement(info, file, there)
    return file.as_read(file.names)


def structures(names: Mapping[int, str], canonical: Callable[[str], str] = clean_name) -> dict[str, tuple[int, ...]]:
    """Name -> its values, without the background; the first spelling of a name counts, as `canonical` has it."""
    spelled: dict[str, str] = {}
    values: dict[str, tuple[int, ...]] = {}
    for value, name in names.items():
        if not is_background(name) and clean_name(name):
            known = spelled.setdefault(name_key(name), canonical(name))
            values[known] = (*values.get(known, ()), value)
    return values


def one_value_each(names: Mapping[int, str]) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """A table of another value for every value, so that each structure has one, its first; and name -> value."""
    table = np.arange(256, dtype=np.uint8)
    for value in (value for value, name in names.items() if is_background(name) and value < len(table)):
        table[value] = 0
    values = structures({value: name for value, name in names.items() if value < len(table)})
    for first, *others in values.values():
        table[others] = first
    return table, {name: own[0] for name, own in values.items()}


def is_background(name: str) -> bool:
    """Whether a name stands for what is no structure."""
    return name_key(name) == BACKGROUND


def listed_names(info: Mapping[str, Any]) -> list[str]:
    """The names in a label's metadata, whatever values they have; without those that cannot be read."""
    for source in sources(info):
        names, listed = source.get("label_names"), source.get("label_info")
        found: Iterable[Any] = ()
        if isinstance(names, Mapping) and names:
            found = list(_by_name(names).values())
        elif isinstance(listed, list):
            found = [_name_in(entry) for entry in listed if isinstance(entry, Mapping)]
        shown = [clean_name(name) for name in found if name and not is_background(name)]
        if shown:
            return list(dict.fromkeys(shown))
    return []


def sent_names(info: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a label's metadata that names its values, as `value_names` reads it; empty if none does."""
    for source in sources(info):
        found = {key: source[key] for key in ("label_names", "label_info") if source.get(key)}
        if found:
            return found
    return {}


def check_both(info: Mapping[str, Any], present: Iterable[int], file: FileLabels) -> None:
    """RequestError if a client sends `label_names` and `label_info`, and they name a value differently."""
    if file.names is not None or not isinstance(info.get("label_info"), list) or not info.get("label_names"):
        return
    there = file.in_file(present)
    one = _sent({"label_names": info["label_names"]}, there, False) or {}
    other = _sent({"label_info": info["label_info"]}, there, False) or {}
    for value in there:
        if name_key(one.get(value, "")) != name_key(other.get(value, "")):
            raise RequestError(
                f"label_names calls the value {value} {one.get(value)!r}, label_info calls it {other.get(value)!r}; "
                "expected the same name in both"
            )


def sources(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a label's metadata that may name its values."""
    params = info.get("params")
    return [info, params] if isinstance(params, Mapping) else [info]


def _sent(info: Mapping[str, Any], present: Sequence[int], partial: bool) -> dict[int, str] | None:
    """The file's value -> name as a client sent it; None if it sent no names."""
    for source in sources(info):
        names, listed = source.get("label_names"), source.get("label_info")
        if isinstance(names, Mapping) and names:
            return _by_name(names)
        if listed:
            return _listed(listed, present, partial)
    return None


def _by_name(names: Mapping[str, Any]) -> dict[int, str]:
    """`label_names` by value; entries without a value are left out. RequestError for two names of one value."""
    found: dict[int, str] = {}
    for name, value in names.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool) and number > 0:
                add_name(found, number, str(name), "label_names")
    return found


def add_name(names: dict[int, str], value: int, name: str, where: str) -> None:
    """Add a name to `names`; RequestError, which begins with `where`, if the value has another name already."""
    before = names.setdefault(value, clean_name(name))
    if name_key(before) != name_key(name):
        raise RequestError(f"{where} gives the value {value} two names, {before!r} and {name!r}; expected one")


class _Entry(NamedTuple):
    name: str
    number: int | None
    key: str  # where the number comes from


def _listed(listed: Any, present: Sequence[int], partial: bool) -> dict[int, str]:
    """`label_info` by value.

    Numbers are the values, if the entries have any. 3D Slicer's `idx` is not always a value: where all values are
    1, 2, ... in the order of the names, that order counts instead. If both readings fit and differ, or none fits, the
    names are refused. Entries without numbers name the values in their order: those that occur if there are as many,
    else 1, 2, ... (a segment may be empty).
    """
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise RequestError(f"label_info is {listed!r:.200}; {_EXPECTED}")
    entries = [_entry(entry, listed) for entry in listed]
    entries = [entry for entry in entries if not (is_background(entry.name) and not entry.number)]
    numbered = [entry for entry in entries if entry.number is not None]
    if not numbered:
        return _in_order([entry.name for entry in entries], present)
    if len(numbered) < len(entries):
        missing = next(entry.name for entry in entries if entry.number is None)
        raise RequestError(
            f"label_info gives {missing!r} no id, but {numbered[0].name!r} has one; expected all or none"
        )
    by_number: dict[int, str] = {}
    for entry in entries:
        add_name(by_number, int(entry.number or 0), entry.name, "label_info")
    by_place = {place: entry.name for place, entry in enumerate(entries, 1)}
    known = [value for value in present if value in by_number]
    fits = known == list(present) or (partial and bool(known))
    if not _may_be_places(entries, present):
        if fits:
            return by_number
        raise RequestError(_misfit(entries, present))
    if fits and any(name_key(by_number.get(value, "")) != name_key(by_place[value]) for value in present):
        raise RequestError(
            f"{_misfit(entries, present)}: counted as values and in their order, they name different structures; "
            "remove the empty segments, or move those that are not saved behind the others"
        )
    return by_number if fits else by_place


def _may_be_places(entries: Sequence[_Entry], present: Sequence[int]) -> bool:
    """Whether the numbers may be 3D Slicer's, and the values those of the order."""
    numbers = [int(entry.number or 0) for entry in entries]
    ascending = all(one < other for one, other in pairwise(numbers))
    return ascending and {entry.key for entry in entries} == {SLICER} and max(present, default=0) <= len(entries)


def _in_order(names: Sequence[str], present: Sequence[int]) -> dict[int, str]:
    if len(names) == len(present):
        return dict(zip(present, names, strict=True))
    if present and max(present) > len(names):
        raise RequestError(
            f"label_info names {len(names)} structures ({', '.join(names)}), but the file holds {shown(present)}"
        )
    return dict(enumerate(names, 1))


def _entry(entry: Mapping[str, Any], listed: Sequence[Any]) -> _Entry:
    name = _name_in(entry)
    if name is None or not clean_name(name):
        raise RequestError(f"label_info is {listed!r:.200}; {_EXPECTED}")
    found: dict[str, int] = {}
    for key in NUMBERS:
        value = entry.get(key)
        if value is None or value == "" or (key == "label" and as_number(value) is None):
            continue
        number = as_number(value)
        if number is None or number < (0 if is_background(name) else 1):
            raise RequestError(f"label_info gives segment {name!r} the {key} {value!r}; expected a number from 1")
        found[key] = number
    if len(set(found.values())) > 1:
        both = " and ".join(f"the {key} {number}" for key, number in found.items())
        raise RequestError(f"label_info gives segment {name!r} {both}; expected one number")
    key = next(iter(found), "")
    return _Entry(clean_name(name), found.get(key), key)


def _name_in(entry: Mapping[str, Any]) -> str | None:
    """The name in an entry of `label_info`; None if it has none."""
    name = entry.get("name")
    if isinstance(name, str) and name:
        return name
    label = entry.get("label")
    return label if isinstance(label, str) and label and as_number(label) is None else None


def as_number(value: Any) -> int | None:
    """A whole number that is written as a number or as text; None for anything else."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < MAX_DIGITS:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _misfit(entries: Sequence[_Entry], present: Sequence[int]) -> str:
    numbers = shown([int(entry.number or 0) for entry in entries])
    names = ", ".join(entry.name for entry in entries)
    return (
        f"label_info names {len(entries)} structures ({names}) with the {entries[0].key} {numbers}, "
        f"but the file holds {shown(present)}"
    )


def _check_agreement(info: Mapping[str, Any], file: FileLabels, present: Sequence[int]) -> None:
    """RequestError if a client names the segments of a file differently than the file itself."""
    own = file.names or {}
    if file.layered:  # values of layers repeat, so numbers beside them say nothing
        sent = {name_key(name) for name in listed_names(info)}
        wrong = [own[value] for value in present if value in own and name_key(own[value]) not in sent]
        if sent and wrong:
            raise RequestError(f"the file names the segment {wrong[0]!r}, which the names beside it do not have")
        return
    named = _sent(info, present, True)
    for value in present if named is not None else ():
        if value in own and name_key((named or {}).get(value, own[value])) != name_key(own[value]):
            raise RequestError(
                f"the file itself names the value {value} {own[value]!r}, but the names beside it say "
                f"{(named or {})[value]!r}; expected the same"
            )


def shown(values: Sequence[int]) -> str:
    """Values for a message, not more than `MAX_SHOWN`."""
    return f"{list(values)}" if len(values) <= MAX_SHOWN else f"[{', '.join(map(str, values[:MAX_SHOWN]))}, ...]"
