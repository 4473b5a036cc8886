# SPDX-License-Identifier: Apache-2.0
"""The downloads that `prepare` knows: the table `catalogue.toml`, in which a reader can check every value and name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("catalogue.toml")


@dataclass(frozen=True)
class CatalogueEntry:
    """What a download is. `name` is that of the data set that is made of it.

    `layout` is the module of `kprism_model.preparation.layouts` that finds its cases. `values` maps a value of the
    original label files (or a colour, a file's or folder's name: its layout says which) to a class; several values may
    mean one class. `published_split` is how the published experiment parts the cases, "" if that is not known.
    """

    name: str
    title: str
    layout: str
    modality: str
    anatomy: str
    values: Mapping[str, str]
    licence: str
    licence_stated_at: str
    url: str
    citation: str
    published_split: str = ""

    @property
    def classes(self) -> dict[int, str]:
        """Label index, from 1 on -> class, in the order of the table."""
        return dict(enumerate(dict.fromkeys(self.values.values()), start=1))

    @property
    def indices(self) -> dict[str, int]:
        """Original value, as the table writes it -> label index."""
        numbers = {name: index for index, name in self.classes.items()}
        return {value: numbers[name] for value, name in self.values.items()}


@cache
def catalogue() -> Mapping[str, CatalogueEntry]:
    """The entries by name, in the order of the table; ValueError for a key that is missing or unknown."""
    content = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    known = {field.name for field in fields(CatalogueEntry)}
    entries = {}
    for name, values in content.items():
        if unknown := set(values) - known:
            raise ValueError(f"{TABLE}: {name} has unknown keys {sorted(unknown)}")
        try:
            entries[name] = CatalogueEntry(name=name, **values)
        except TypeError as error:
            raise ValueError(f"{TABLE}: {name}: {error}") from error
    return entries
