# SPDX-License-Identifier: Apache-2.0
"""Which network answers a structure: the shipped weights, or a version that the site has trained.

Each version of a site is a complete network. Its routes say which structures it or an earlier version answers in each
mode. Everything that the routes do not name is answered by the shipped weights, as before any training.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kprism_model.classes import name_key

SEMANTIC, IN_CONTEXT, INTERACTIVE = "semantic", "in_context", "interactive"

MODES = (SEMANTIC, IN_CONTEXT, INTERACTIVE)
"""The modes of the network that have routes. The model `scribbles` uses the routes of `interactive`."""


@dataclass(frozen=True)
class Routes:
    """`by_mode`: mode -> structure -> number of the version that answers. Letter case of names does not matter."""

    by_mode: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: Any, version: int) -> Routes:
        """From the JSON of the version with this number; null (None) stands for that version itself.

        ValueError if `content` is not {mode: {structure: number}}, for a number that is not from 1 to `version`, and
        for a structure that is named twice in a mode.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"routes are {content!r}; expected an object {{mode: {{structure: version}}}}")
        by_mode = {mode: _parse_mode(mode, entries, version) for mode, entries in content.items()}
        return cls({mode: by_mode[mode] for mode in MODES if by_mode.get(mode)})

    def to_json(self) -> dict[str, dict[str, int]]:
        """The JSON object that `parse` reads."""
        return {mode: dict(entries) for mode, entries in self.by_mode.items()}

    def version_for(self, mode: str, structure: str) -> int | None:
        """The version that answers a structure in a mode; None for the shipped weights."""
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} has no routes; expected one of {', '.join(MODES)}")
        return self._versions.get((mode, name_key(structure)))

    def names(self, mode: str) -> tuple[str, ...]:
        """The structures that versions of the site answer in a mode."""
        return tuple(self.by_mode.get(mode, ()))

    def structures(self) -> tuple[str, ...]:
        """The structures that versions of the site answer in at least one mode."""
        return tuple({name_key(name): name for entries in self.by_mode.values() for name in entries}.values())

    def numbers(self) -> tuple[int, ...]:
        """The versions that answer at least one structure, ascending."""
        return tuple(sorted(set(self._versions.values())))

    def without(self, structures: Collection[str]) -> Routes:
        """The routes of all other structures."""
        keys = {name_key(name) for name in structures}
        kept = {
            mode: {name: number for name, number in entries.items() if name_key(name) not in keys}
            for mode, entries in self.by_mode.items()
        }
        return Routes({mode: entries for mode, entries in kept.items() if entries})

    @cached_property
    def _versions(self) -> dict[tuple[str, str], int]:
        return {
            (mode, name_key(name)): number for mode, entries in self.by_mode.items() for name, number in entries.items()
        }


def _parse_mode(mode: str, entries: Any, version: int) -> dict[str, int]:
    if mode not in MODES:
        raise ValueError(f"routes name the mode {mode!r}; expected one of {', '.join(MODES)}")
    if not isinstance(entries, Mapping):
        raise ValueError(f"routes of {mode} are {entries!r}; expected an object {{structure: version}}")
    numbers: dict[str, int] = {}
    for name, value in entries.items():
        number = version if value is None else value
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= version:
            raise ValueError(f"routes of {mode} send {name!r} to version {value!r}; expected 1 to {version}")
        numbers[name] = number
    keys = [name_key(name) for name in numbers]
    for name, key in zip(numbers, keys, strict=True):
        if keys.count(key) > 1:
            raise ValueError(f"routes of {mode} name the structure {name!r} twice")
    return numbers
