# SPDX-License-Identifier: Apache-2.0
"""The files of the versions: a pair `NNNN.safetensors` and `NNNN.json` each, and the shipped weights, version 0.

The JSON is written last and removed first: weights without it are not a version.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kprism_model.classes import ClassRegistry
from lib.files import remove_parts, sha256
from lib.learning.architecture import is_of_earlier_network
from lib.routes import Routes

logger = logging.getLogger(__name__)

SHIPPED = 0
"""Number of the weights that come with the app."""


class VersionError(ValueError):
    """A version does not exist or cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Version:
    """One version: its number, that of its parent (None for the shipped weights), weights file, and when it was made.

    `metadata`: metrics, training cases and what else the trainer recorded. `classes`: the structures that it knows.
    `earlier`: it is a version of an earlier network than the shipped weights, or was written before versions had
    routes, and cannot serve.

    `routes`: who answers what while it serves. `left_out`: structures that it has routes for but does not answer,
    because it was compared with other shipped weights (`base`), and the present ones know them. `kinds`: structure ->
    kinds of images that it was labelled in. `provisional`: mode -> structures that too few patients have confirmed.
    """

    number: int
    parent: int | None
    path: Path
    weights_version: str
    made: float | None
    metadata: Mapping[str, Any]
    classes: tuple[str, ...]
    earlier: bool = False
    base: str | None = None
    routes: Routes = field(default_factory=Routes)
    left_out: tuple[str, ...] = ()
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    provisional: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def warning(self) -> str | None:
        """What it does not answer because nobody has compared it with the present shipped weights; None if nothing."""
        if not self.left_out:
            return None
        return (
            f"version {self.number} was compared with other shipped weights ({self.base}): the present ones answer "
            f"{', '.join(self.left_out)} until the next training"
        )


class VersionFiles:
    """The files in `folder`, and the shipped weights at `shipped`."""

    def __init__(self, folder: Path, shipped: Path) -> None:
        self.folder, self.shipped = folder, shipped

    def numbers(self) -> list[int]:
        """Numbers of the versions in the folder, ascending: those with a JSON file."""
        names = (path.stem for path in self.folder.glob("*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, number: int) -> Path:
        """The weights file of a version."""
        path = self.shipped if number == SHIPPED else self.folder / f"{number:04d}"
        return path.with_suffix(".safetensors")

    def read(self, number: int) -> Version:
        """The description of a version; VersionError if there is none or it is damaged."""
        path = self.path(number)
        if number != SHIPPED and number not in self.numbers():
            known = ", ".join(map(str, (SHIPPED, *self.numbers())))
            raise VersionError(f"there is no version {number} of the weights; there are {known}")
        try:
            content = json.loads(path.with_suffix(".json").read_bytes())
            metadata, classes = content["metadata"], tuple(content["classes"])
            if number == SHIPPED:
                return Version(SHIPPED, None, path, content["weights_version"], None, metadata, classes)
            version = Version(
                number=number,
                parent=metadata["parent"],
                path=path,
                weights_version=content["weights_version"],
                made=metadata["made"],
                metadata=metadata["note"],
                classes=classes,
            )
            return self._with_routes(version, content["config"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            json_path = path.with_suffix(".json")
            raise VersionError(f"the description of version {number}, {json_path}: {error!r}") from error

    def fault(self, version: Version) -> str | None:
        """What is wrong with the files of a version, or None if the weights are those that were written."""
        try:
            expected = json.loads(version.path.with_suffix(".json").read_bytes())["sha256"]
            actual = sha256(version.path)
        except (OSError, ValueError, LookupError) as error:
            return f"version {version.number} of the weights cannot be used: {error!r}"
        if actual == expected:
            return None
        return (
            f"version {version.number} of the weights is damaged: {version.path} has SHA-256 {actual}, not {expected}"
        )

    def remove(self, number: int) -> None:
        """Delete a version."""
        for suffix in (".json", ".safetensors"):
            self.path(number).with_suffix(suffix).unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Delete what a kill during a publication left: partial files, and weights without a JSON file."""
        remove_parts(self.folder)
        described = set(self.numbers())
        for path in self.folder.glob("*.safetensors"):
            if path.stem.isdigit() and int(path.stem) not in described:
                path.unlink()

    def _with_routes(self, version: Version, config: Mapping[str, Any]) -> Version:
        """The version with its routes; those that nobody has compared with the present shipped weights are left out."""
        note = version.metadata
        shipped = self._shipped_content()
        if "routes" not in note or "base" not in note or _is_earlier(config, shipped):
            return replace(version, earlier=True)
        routes = Routes.parse(note["routes"], version.number)
        base = str(note["base"])
        left_out: tuple[str, ...] = ()
        if shipped and base != shipped["weights_version"]:
            known = ClassRegistry(shipped["classes"])
            left_out = tuple(name for name in routes.structures() if name in known)
        return replace(
            version,
            base=base,
            routes=routes.without(left_out),
            left_out=left_out,
            kinds={name: tuple(kinds) for name, kinds in note.get("kinds", {}).items()},
            provisional={mode: tuple(names) for mode, names in note.get("provisional", {}).items()},
        )

    def _shipped_content(self) -> dict[str, Any] | None:
        """The JSON of the shipped weights; None if it is damaged."""
        try:
            content: dict[str, Any] = json.loads(self.path(SHIPPED).with_suffix(".json").read_bytes())
            return {key: content[key] for key in ("config", "classes", "weights_version")}
        except (OSError, ValueError, LookupError, TypeError):
            return None


def _is_earlier(config: Mapping[str, Any], shipped: Mapping[str, Any] | None) -> bool:
    """Whether weights with this configuration are of another network than the shipped ones; False if unknown."""
    return shipped is not None and is_of_earlier_network(config, shipped["config"])
