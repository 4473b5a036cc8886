# SPDX-License-Identifier: Apache-2.0
"""Versions of the weights: numbered, never changed once written, and a pointer to the one that serves.

The metadata of a version say what it was trained on, its parent and its metrics. Version 0 are the shipped weights,
which lie elsewhere. The pointer is replaced after the version that it names is safely on the disk, so it names a
complete version whenever a process is killed or the disk is full. If a version is damaged later, its nearest good
ancestor serves, in the end the shipped weights. Versions of an earlier network (`lib.learning.earlier_structures`) are
kept and listed, but never serve.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.files import locked
from lib.learning.version_files import SHIPPED, Version, VersionError, VersionFiles
from lib.learning.version_pointer import Pointer, PointerFile

# PyTorch takes seconds to import, and `kprism versions rollback` must not wait for it: only the functions that need it
# import it.
if TYPE_CHECKING:
    from kprism_model.checkpoint import Checkpoint
    from kprism_model.classes import ClassRegistry
    from kprism_model.network.kprism import KPrism

logger = logging.getLogger(__name__)

KEPT_VERSIONS = 10
"""Versions that are kept by default."""


@dataclass(frozen=True)
class Served:
    """A loaded checkpoint with its number; `warning` says why it is not the version that the pointer names."""

    number: int
    checkpoint: Checkpoint
    warning: str | None = None


class Versions:
    """The versions in `folder`, and the shipped weights at `shipped`. Any number of processes may use one folder."""

    def __init__(self, folder: Path, shipped: Path, *, keep: int = KEPT_VERSIONS) -> None:
        if keep < 1:
            raise ValueError(f"the number of versions to keep must be 1 or more, got {keep}")
        self.folder, self.shipped, self.keep = folder, shipped, keep
        self._files = VersionFiles(folder, shipped)
        self._pointer_file = PointerFile(folder / "current.json")

    def publish(
        self, model: KPrism, registry: ClassRegistry, *, metadata: Mapping[str, Any], parent: int | None = None
    ) -> int:
        """Write `model` as a new version and make it the serving one; returns its number.

        `parent` is the version that it was trained from, by default the serving one. Nothing changes if this fails.
        """
        from kprism_model.checkpoint import load_checkpoint, save_checkpoint

        with locked(self.folder):
            self._files.remove_partial()
            pointer = self._pointer()
            parent = self._nearest(pointer) if parent is None else parent
            number = max([pointer.highest, *self._files.numbers()]) + 1
            content = {"version": number, "parent": parent, "made": time.time(), "note": dict(metadata)}
            try:
                save_checkpoint(self._files.path(number), model, registry, metadata=content)
                load_checkpoint(self._files.path(number))  # weights that cannot be read back must not serve
            except BaseException:
                self._files.remove(number)
                raise
            self._pointer_file.write(Pointer(number, tuple(self._line(parent)), number))
            self._prune()
        logger.info("Version %d of the weights serves now", number)
        return number

    def roll_back(self, number: int) -> Version:
        """Make another version the serving one; VersionError if it does not exist or cannot serve."""
        with locked(self.folder):
            version = self.version(number)
            if version.earlier:
                raise VersionError(
                    f"version {number} of the weights is of an earlier network than the shipped weights, "
                    f"{self._files.path(SHIPPED)}, and cannot serve any more"
                )
            if (fault := self.fault(version)) is not None:
                raise VersionError(fault)
            ancestors = () if version.parent is None else tuple(self._line(version.parent))
            highest = max([self._pointer().highest, *self._files.numbers()])
            self._pointer_file.write(Pointer(number, ancestors, highest))
        logger.info("Version %d of the weights serves again", number)
        return version

    def current(self) -> Version:
        """The version that should serve, even if its weights are damaged: the one that the pointer names or, if that is
        of an earlier network, its nearest ancestor that is not.
        """
        return self.version(self._nearest(self._pointer()))

    def load(self, *, device: str = "cpu") -> Served:
        """Load the version that should serve (see `current`) or, with a warning, its nearest ancestor that is whole.

        CheckpointError if not even the shipped weights can be loaded.
        """
        from kprism_model.checkpoint import CheckpointError, load_checkpoint

        pointer, warning = self._read_pointer()
        line = self._line_of_network(pointer)
        if pointer.number not in line:
            logger.warning("Version %d of the weights is of an earlier network and is skipped", pointer.number)
        for number in line:
            try:
                return Served(number, load_checkpoint(self._files.path(number), device=device), warning)
            except CheckpointError as error:
                if number == SHIPPED:
                    raise
                warning = f"version {number} of the weights is damaged and left out: {error}"
                logger.error("%s", warning)
        raise CheckpointError(f"{self._pointer_file.path} names no version that descends from the shipped weights")

    def load_anchor(self, served: Served, *, device: str = "cpu") -> Checkpoint:
        """The weights that a training on top of `served` must not forget: the shipped ones, or `served` itself if it
        does not descend from them (the release ships other weights since).
        """
        from kprism_model.checkpoint import load_checkpoint
        from kprism_model.training.weights import descends

        if served.number == SHIPPED:
            return served.checkpoint
        shipped = load_checkpoint(self.shipped, device=device)
        return shipped if descends(served.checkpoint, shipped) else served.checkpoint

    def stamp(self) -> tuple[int, int]:
        """A value that changes whenever another version serves; cheap enough to be asked at every request."""
        return self._pointer_file.stamp()

    def known(self) -> list[Version]:
        """All versions whose description can be read, by number, the shipped one first."""
        versions = []
        for number in (SHIPPED, *self._files.numbers()):
            try:
                versions.append(self.version(number))
            except VersionError as error:
                logger.warning("%s", error)
        return versions

    def version(self, number: int) -> Version:
        """The description of a version; VersionError if there is none."""
        return self._files.read(number)

    def fault(self, version: Version) -> str | None:
        """What is wrong with the files of a version, or None if the weights are those that were written."""
        return self._files.fault(version)

    def _nearest(self, pointer: Pointer) -> int:
        """The version that should serve, see `current`."""
        return next(iter(self._line_of_network(pointer)), SHIPPED)

    def _line_of_network(self, pointer: Pointer) -> list[int]:
        """The version that the pointer names and its ancestors down to the shipped one, without those of an earlier
        network. A version whose description cannot be read stays in the list.
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
        numbers = self._files.numbers()
        surplus = len(numbers) - self.keep
        for number in numbers:
            if surplus > 0 and number not in protected:
                self._files.remove(number)
                surplus -= 1

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

    def _pointer(self) -> Pointer:
        return self._read_pointer()[0]

    def _read_pointer(self) -> tuple[Pointer, str | None]:
        return self._pointer_file.read((SHIPPED, *self._files.numbers()))
