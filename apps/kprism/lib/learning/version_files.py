# SPDX-License-Identifier: Apache-2.0
"""The files of the versions: a pair `NNNN.safetensors` and `NNNN.json` each, and the shipped weights, version 0.

The JSON is written last and removed first: weights without it are not a version.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.files import remove_parts, sha256
from lib.learning.architecture import is_of_earlier_network

logger = logging.getLogger(__name__)

SHIPPED = 0
"""Number of the weights that come with the app."""


class VersionError(ValueError):
    """A version does not exist or cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Version:
    """One version: its number, that of its parent (None for the shipped weights), weights file, and when it was made.

    `metadata`: metrics, training cases and what else the trainer recorded. `classes`: the structures that it knows.
    `earlier`: it is a version of an earlier network than the shipped weights, and cannot serve.
    """

    number: int
    parent: int | None
    path: Path
    weights_version: str
    made: float | None
    metadata: Mapping[str, Any]
    classes: tuple[str, ...]
    earlier: bool = False


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
            metadata, weights_version = content["metadata"], content["weights_version"]
            classes = tuple(content["classes"])
            if number == SHIPPED:
                return Version(SHIPPED, None, path, weights_version, None, metadata, classes)
            return Version(
                number=number,
                parent=metadata["parent"],
                path=path,
                weights_version=weights_version,
                made=metadata["made"],
                metadata=metadata["note"],
                classes=classes,
                earlier=self._is_earlier(content["config"]),
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
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

    def _is_earlier(self, config: Mapping[str, Any]) -> bool:
        """Whether weights with this configuration are of an earlier network; False if the shipped JSON is damaged."""
        try:
            shipped = json.loads(self.path(SHIPPED).with_suffix(".json").read_bytes())["config"]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return is_of_earlier_network(config, shipped)
