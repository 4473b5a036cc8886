# SPDX-License-Identifier: Apache-2.0
"""Versions of the weights: numbered, never changed once written, and a pointer to the one that serves.

A version is the checkpoint pair `NNNN.safetensors` and `NNNN.json`, whose metadata says what it was trained on, its
parent and its metrics; version 0 are the shipped weights, which lie elsewhere. `current.json` names the version that
serves, its ancestors, and the highest number ever given, so that no number is used twice. It is replaced by rename,
after the version that it names is safely on the disk: whenever a process is killed or the disk fills up, the pointer
names a whole version. One that is damaged later is left out for the nearest good ancestor, in the end the shipped
weights; so is one of an earlier network (`lib.learning.earlier_structures`), which is kept and listed but never serves.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.files import locked, read_json, remove_parts, sha256, write_json
from lib.learning.architecture import is_of_earlier_network

# PyTorch takes seconds to import, and going back to a version must not: what needs it imports it.
if TYPE_CHECKING:
    from kprism_model.checkpoint import Checkpoint
    from kprism_model.classes import ClassRegistry
    from kprism_model.network.kprism import KPrism

logger = logging.getLogger(__name__)

SHIPPED = 0
"""Number of the weights that come with the app."""

KEPT = 10
"""Versions that are kept by default."""

_POINTER = "current.json"
_SUFFIXES = (".safetensors", ".json")


class VersionError(ValueError):
    """A version that does not exist or cannot be used; the sentence says which and why."""


@dataclass(frozen=True)
class Version:
    """One version: its number, that of its parent (None for the shipped weights), weights file, and when it was made.

    `note` are metrics, training cases and whatever else the trainer said of it; `classes` are the structures that it
    knows. `earlier`: it is of an earlier network than the shipped weights, and cannot serve.
    """

    number: int
    parent: int | None
    path: Path
    weights_version: str
    made: float | None
    note: Mapping[str, Any]
    classes: tuple[str, ...]
    earlier: bool = False


@dataclass(frozen=True)
class Served:
    """A loaded checkpoint with its number; `warning` says why it is not the version that the pointer names."""

    number: int
    checkpoint: Checkpoint
    warning: str | None = None


@dataclass(frozen=True)
class _Pointer:
    """The serving version, its ancestors (nearest first, down to the shipped one) and the highest number given."""

    number: int
    ancestors: tuple[int, ...]
    highest: int


class Versions:
    """The versions in `folder`, on top of the weights at `shipped`. Any number of processes may use one folder."""

    def __init__(self, folder: Path, shipped: Path, *, keep: int = KEPT) -> None:
        if keep < 1:
            raise ValueError(f"the number of versions to keep must be 1 or more, got {keep}")
        self.folder, self.shipped, self.keep = folder, shipped, keep

    def publish(
        self, model: KPrism, registry: ClassRegistry, *, note: Mapping[str, Any], parent: int | None = None
    ) -> int:
        """Write `model` as a new version and let it serve; returns its number.

        `parent` is the version that it was trained from, by default the one that serves. Nothing changes if this fails.
        """
        from kprism_model.checkpoint import load_checkpoint, save_checkpoint

        with locked(self.folder):
            self._remove_remains()
            pointer = self._pointer()
            parent = self._nearest(pointer) if parent is None else parent
            number = max([pointer.highest, *self._numbers()]) + 1
            metadata = {"version": number, "parent": parent, "made": time.time(), "note": dict(note)}
            try:
                save_checkpoint(self._stem(number), model, registry, metadata=metadata)
                load_checkpoint(self._stem(number))  # what cannot be read back must not serve
            except BaseException:
                self._remove(number)
                raise
            self._point(number, self._ancestors(parent), number)
            self._prune()
        logger.info("Version %d of the weights serves now", number)
        return number

    def roll_back(self, number: int) -> Version:
        """Let another version serve; VersionError if it is not there, damaged, or of an earlier network."""
        with locked(self.folder):
            version = self.version(number)
            if version.earlier:
                raise VersionError(
                    f"version {number} of the weights is of an earlier network than the shipped weights, "
                    f"{self._path(SHIPPED)}, and cannot serve any more"
                )
            if (fault := self.fault(version)) is not None:
                raise VersionError(fault)
            parent = version.parent
            ancestors = () if parent is None else self._ancestors(parent)
            self._point(number, ancestors, max([self._pointer().highest, *self._numbers()]))
        logger.info("Version %d of the weights serves again", number)
        return version

    def current(self) -> Version:
        """The version that is to serve, whether or not its weights are whole: the one that the pointer names or, where
        that is of an earlier network, its nearest ancestor that is not.
        """
        return self.version(self._nearest(self._pointer()))

    def load(self, *, device: str = "cpu") -> Served:
        """Load the version that is to serve (see `current`) or, with a warning, its nearest ancestor that is whole.

        CheckpointError if not even the shipped weights can be loaded.
        """
        from kprism_model.checkpoint import CheckpointError, load_checkpoint

        pointer, warning = self._read_pointer()
        line = self._line_of_network(pointer)
        if pointer.number not in line:
            logger.warning("Version %d of the weights is of an earlier network and left out", pointer.number)
        for number in line:
            try:
                served = Served(number, load_checkpoint(self._path(number), device=device), warning)
            except CheckpointError as error:
                if number == SHIPPED:
                    raise
                warning = f"version {number} of the weights is damaged and left out: {error}"
                logger.error("%s", warning)
                continue
            return served
        raise CheckpointError(f"{self.folder / _POINTER} names no version that leads back to the shipped weights")

    def load_anchor(self, served: Served, *, device: str = "cpu") -> Checkpoint:
        """The weights that a training on top of `served` must not lose anything of: the shipped ones, or `served`
        itself where it does not descend from them (another network was put in their place since).
        """
        from kprism_model.checkpoint import load_checkpoint
        from kprism_model.training.weights import descends

        if served.number == SHIPPED:
            return served.checkpoint
        shipped = load_checkpoint(self.shipped, device=device)
        return shipped if descends(served.checkpoint, shipped) else served.checkpoint

    def stamp(self) -> tuple[int, int]:
        """A value that changes whenever another version is made to serve; cheap enough to ask at every request."""
        try:
            state = (self.folder / _POINTER).stat()
        except FileNotFoundError:
            return 0, 0
        return state.st_mtime_ns, state.st_ino

    def known(self) -> list[Version]:
        """All versions whose description can be read, by number, the shipped one first."""
        found = []
        for number in (SHIPPED, *self._numbers()):
            try:
                found.append(self.version(number))
            except VersionError as error:
                logger.warning("%s", error)
        return found

    def version(self, number: int) -> Version:
        """The description of a version; VersionError if there is none."""
        path = self._path(number)
        if number != SHIPPED and number not in self._numbers():
            known = ", ".join(map(str, (SHIPPED, *self._numbers())))
            raise VersionError(f"there is no version {number} of the weights; there are {known}")
        try:
            content = json.loads(path.with_suffix(".json").read_bytes())
            metadata, weights_version = content["metadata"], content["weights_version"]
            classes = tuple(content["classes"])
            if number == SHIPPED:
                return Version(SHIPPED, None, path, weights_version, None, metadata, classes)
            return Version(
                number,
                metadata["parent"],
                path,
                weights_version,
                metadata["made"],
                metadata["note"],
                classes,
                self._is_earlier(content["config"]),
            )
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise VersionError(
                f"the description of version {number}, {path.with_suffix('.json')}: {error!r}"
            ) from error

    def fault(self, version: Version) -> str | None:
        """What is wrong with the files of a version, or None: its weights must be those that were written."""
        try:
            expected = json.loads(version.path.with_suffix(".json").read_bytes())["sha256"]
            found = sha256(version.path)
        except (OSError, ValueError, LookupError) as error:
            return f"version {version.number} of the weights cannot be used: {error!r}"
        if found == expected:
            return None
        return f"version {version.number} of the weights is damaged: {version.path} has SHA-256 {found}, not {expected}"

    def _is_earlier(self, config: Mapping[str, Any]) -> bool:
        """Whether weights with this configuration are of an earlier network; False if nothing tells of the shipped."""
        try:
            shipped = json.loads(self._path(SHIPPED).with_suffix(".json").read_bytes())["config"]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return is_of_earlier_network(config, shipped)

    def _nearest(self, pointer: _Pointer) -> int:
        """The version that is to serve, see `current`."""
        return next(iter(self._line_of_network(pointer)), SHIPPED)

    def _line_of_network(self, pointer: _Pointer) -> list[int]:
        """The version that the pointer names and its ancestors down to the shipped one, without those of an earlier
        network; a version whose description cannot be read stays among them.
        """
        line = []
        for number in (pointer.number, *pointer.ancestors):
            try:
                earlier = self.version(number).earlier
            except VersionError:
                earlier = False
            if not earlier:
                line.append(number)
        return line

    def _prune(self) -> None:
        """Delete the oldest versions; never the serving one nor its parent."""
        pointer = self._pointer()
        protected = {pointer.number, *pointer.ancestors[:1]}
        numbers = self._numbers()
        surplus = len(numbers) - self.keep
        for number in numbers:
            if surplus > 0 and number not in protected:
                self._remove(number)
                surplus -= 1

    def _remove_remains(self) -> None:
        """Delete what a publication that was killed has left: partial files, and weights without a description."""
        remove_parts(self.folder)
        described = set(self._numbers())
        for path in self.folder.glob("*.safetensors"):
            if path.stem.isdigit() and int(path.stem) not in described:
                path.unlink()

    def _remove(self, number: int) -> None:
        """The description goes first: without it the weights are no version."""
        for suffix in reversed(_SUFFIXES):
            self._stem(number).with_suffix(suffix).unlink(missing_ok=True)

    def _ancestors(self, number: int) -> tuple[int, ...]:
        return tuple(self._line(number))

    def _line(self, number: int | None) -> Iterator[int]:
        """`number`, its parent, and so on down to the shipped weights, as far as descriptions can be read."""
        while number is not None and number != SHIPPED:
            yield number
            try:
                parent = self.version(number).parent
            except VersionError:
                break
            number = parent if parent is not None and parent < number else None  # numbers only grow
        yield SHIPPED

    def _pointer(self) -> _Pointer:
        return self._read_pointer()[0]

    def _read_pointer(self) -> tuple[_Pointer, str | None]:
        """What serves; where the pointer is damaged, the newest version, and a sentence about it."""
        path = self.folder / _POINTER
        try:
            content = read_json(path)
            if content is None:
                return _Pointer(SHIPPED, (), SHIPPED), None
            ancestors = tuple(int(number) for number in content["ancestors"])
            return _Pointer(int(content["number"]), ancestors, int(content["highest"])), None
        except (ValueError, LookupError, TypeError) as error:
            newest, *older = (*reversed(self._numbers()), SHIPPED)
            warning = f"{path} is damaged ({error}); the newest version, {newest}, serves instead"
            logger.error("%s", warning)
            return _Pointer(newest, tuple(older), newest), warning

    def _point(self, number: int, ancestors: tuple[int, ...], highest: int) -> None:
        write_json(self.folder / _POINTER, {"number": number, "ancestors": ancestors, "highest": highest})

    def _numbers(self) -> list[int]:
        """Numbers of the versions in the folder, ascending: those with a description."""
        names = (path.stem for path in self.folder.glob("*.json"))
        return sorted(int(name) for name in names if name.isdigit())

    def _path(self, number: int) -> Path:
        return self.shipped.with_suffix(".safetensors") if number == SHIPPED else self._weights(number)

    def _weights(self, number: int) -> Path:
        return self._stem(number).with_suffix(".safetensors")

    def _stem(self, number: int) -> Path:
        return self.folder / f"{number:04d}"
