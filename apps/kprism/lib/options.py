# SPDX-License-Identifier: Apache-2.0
"""Options of a model: both viewers show them from MONAI Label's `config`, and requests send their values.

Viewers show a bool as a check box, a list as a choice whose first item is the default, all else as a text field.
OHIF sends only what the user changed, Slicer sends every option; either may send a choice as a string or as a list.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lib.errors import RequestError

Value = bool | int | float | str | list[str]


@dataclass(frozen=True)
class Option:
    """One option: its default, and the choices of a string or the range of a number.

    A text option with `names` is read as a list of names, see `names_in`.
    """

    default: bool | int | float | str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    names: bool = False

    def shown(self) -> Value:
        """The option as an entry of MONAI Label's `config`."""
        return list(self.choices) if self.choices else self.default

    def read(self, name: str, value: Any) -> Value:
        """The value that a client sent, checked; RequestError names the option and the value."""
        if isinstance(self.default, bool):
            return as_bool(name, value)
        if self.choices:
            return self._choice(name, value)
        if isinstance(self.default, int | float):
            return self._number(name, value)
        return as_names(name, value) if self.names else as_text(name, value)

    def _choice(self, name: str, value: Any) -> str:
        if isinstance(value, list | tuple):
            value = value[0] if value else self.default
        if value not in self.choices:
            raise RequestError(f"option {name} is {value!r}; expected one of {', '.join(map(repr, self.choices))}")
        return str(value)

    def _number(self, name: str, value: Any) -> int | float:
        try:
            if isinstance(value, bool):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise RequestError(f"option {name} is {value!r}; expected a number") from None
        whole = isinstance(self.default, int)
        if not self.low <= number <= self.high or (whole and not number.is_integer()):
            kind = "a whole number" if whole else "a number"
            raise RequestError(f"option {name} is {value!r}; expected {kind} from {self.low:g} to {self.high:g}")
        return int(number) if whole else number


def read_options(options: Mapping[str, Option], params: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every option: from the request, else the default."""
    return {
        name: option.read(name, option.default if params.get(name) is None else params[name])
        for name, option in options.items()
    }


def as_bool(name: str, value: Any) -> bool:
    """A check box's value; clients send true, "true" or 1."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
    word = str(value).strip().lower()
    if word not in words:
        raise RequestError(f"option {name} is {value!r}; expected true or false")
    return words[word]


def as_text(name: str, value: Any) -> str:
    """A text field's value; a number becomes text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RequestError(f"option {name} is {value!r}; expected text")
    return str(value)


def as_names(name: str, value: Any) -> list[str]:
    """Names from a text field (see `names_in`), or from a list, whose items may contain commas."""
    if isinstance(value, list | tuple):
        if not all(isinstance(item, str) for item in value):
            raise RequestError(f"option {name} is {value!r}; expected names")
        return _cleaned(value)
    try:
        return names_in(as_text(name, value))
    except csv.Error as error:
        raise RequestError(f"option {name} is {str(value)[:80]!r}...; expected names with commas: {error}") from error


def names_in(text: str) -> list[str]:
    """The names in a comma-separated list, without empty and repeated ones; a name with a comma is in "quotes"."""
    return _cleaned(part for line in csv.reader([" ".join(text.split())], skipinitialspace=True) for part in line)


def _cleaned(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for name in (" ".join(part.split()) for part in names) if name))
