# SPDX-License-Identifier: Apache-2.0
"""Versions of the weights: numbered, never changed once written, and a pointer to the one that serves.

A version is a complete network that a site has trained, and the routes (`lib.routes`) that say what it answers. The
shipped weights and earlier versions answer the rest, so a version serves together with them. The metadata of a version
say what it was trained on, its parent and its metrics. Version 0 are the shipped weights, which lie elsewhere. The
pointer is replaced after the version that it names is safely on the disk, so it names a complete version whenever a
process is killed or the disk is full. If a version, or one that it has routes to, is damaged later, its nearest good
ancestor serves, in the end the shipped weights alone. Versions of an earlier network are kept and listed, but never
serve.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.files import locked
from lib.learning.version_files import SHIPPED, Version, VersionError, VersionFiles
from lib.learning.version_pointer import Pointer, PointerFile
from lib.routes import SEMANTIC, Routes

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
    """What serves: the version `number`, its routes, and the checkpoints that they need.

    parts: the checkpoints of the versions that answer something, by number. weights_version: the hash of the serving
    version's own file. kinds and provisional: as in `Version`. warning: why it is not the version that the pointer
    names.
    """

    number: int
    weights_version: str
    shipped: Checkpoint
    parts: Mapping[int, Checkpoint] = field(default_factory=dict)
    routes: Routes = field(default_factory=Routes)
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    provisional: Mapping[str, Sequence[str]] = field(default_factory=dict)
    warning: str | None = None

    def checkpoints(self) -> dict[str, Checkpoint]:
        """All checkpoints by the hash of their weights."""
        return {checkpoint.weights_version: checkpoint for checkpoint in (*self.parts.values(), self.shipped)}


class Versions:
    """The versions in `folder`, and the shipped weights at `shipped`. Any number of processes may use one folder."""

    def __init__(self, folder: Path, shipped: Path, *, keep: int = KEPT_VERSIONS) -> None:
        if keep < 1:
            raise ValueError(f"the number of versions to keep must be 1 or more, got {keep}")
        self.folder, self.shipped, self.keep = folder, shipped, keep
        self._files = VersionFiles(folder, shipped)
        self._pointer_file = PointerFile(folder / "current.json")

    def publish(
        self,
        model: KPrism,
        registry: ClassRegistry,
        *,
        metadata: Mapping[str, Any],
        routes: Mapping[str, Mapping[str, int | None]],
        parent: int | None = None,
        chosen: tuple[int, int] | None = None,
    ) -> int:
        """Write `model` as a new version and make it the serving one; returns its number.

        `routes` are {mode: {structure: the version that answers, None for the new one}}; what they do not name is
        answered by the shipped weights. `metadata` may hold `base`, the hash of the shipped weights that the version
        was compared with (default: the present ones), `kinds` and `provisional` (see `Version`). `parent` is the
        version that it was trained from, by default the serving one; `chosen` is the `stamp` of that time. Nothing
        changes if this fails. ValueError for routes to a version that does not exist, cannot serve, or does not know a
        structure that it has to name; VersionError if somebody has chosen another version since `chosen`.
        """
        from kprism_model.checkpoint import load_checkpoint, save_checkpoint

        with locked(self.folder):
            if chosen is not None and chosen != self.stamp():
                raise VersionError("another version of the weights was chosen during the training")
            self._files.remove_partial()
            pointer = self._pointer()
            parent = self._nearest(pointer) if parent is None else parent
            number = max([pointer.highest, *self._files.numbers()]) + 1
            parsed = Routes.parse(routes, number)
            self._check_routes(parsed, {number: registry})
            base = self.version(SHIPPED).weights_version
            note = {"base": base, **metadata, "routes": parsed.to_json()}
            content = {"version": number, "parent": parent, "made": time.time(), "note": note}
            try:
                save_checkpoint(self._files.path(number), model, registry, metadata=content, dtype="float16")
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

    def load(self, *, device: str = "cpu", loaded: Mapping[str, Checkpoint] | None = None) -> Served:
        """Load the version that should serve (see `current`) or, with a warning, its nearest ancestor that is whole.

        `loaded` are checkpoints by the hash of their weights (`Served.checkpoints`), which are not read again.
        CheckpointError if the shipped weights cannot be loaded, because they are a part of every version.
        """
        from kprism_model.checkpoint import CheckpointError

        loaded = loaded or {}
        pointer, warning = self._read_pointer()
        line = self._line_of_network(pointer)
        if pointer.number not in line:
            logger.warning("Version %d of the weights is of an earlier network and is skipped", pointer.number)
        shipped = self._checkpoint(SHIPPED, device, loaded)
        for number in line:
            try:
                return self._serve(number, shipped, device, loaded, warning)
            except (CheckpointError, VersionError) as error:
                warning = f"version {number} of the weights is damaged and left out: {error}"
                logger.error("%s", warning)
        return Served(SHIPPED, shipped.weights_version, shipped, warning=warning)

    def _serve(
        self, number: int, shipped: Checkpoint, device: str, loaded: Mapping[str, Checkpoint], warning: str | None
    ) -> Served:
        """A version with its parts; CheckpointError or VersionError if one of them is damaged or gone."""
        if number == SHIPPED:
            return Served(SHIPPED, shipped.weights_version, shipped, warning=warning)
        version = self.version(number)
        if version.warning is not None:
            logger.warning("%s", version.warning)
        self._check_routes(version.routes)
        parts = {part: self._checkpoint(part, device, loaded) for part in {number, *version.routes.numbers()}}
        return Served(
            number=number,
            weights_version=version.weights_version,
            shipped=shipped,
            parts={part: parts[part] for part in version.routes.numbers()},
            routes=version.routes,
            kinds=version.kinds,
            provisional=version.provisional,
            warning=warning,
        )

    def _checkpoint(self, number: int, device: str, loaded: Mapping[str, Checkpoint]) -> Checkpoint:
        from kprism_model.checkpoint import CheckpointError, load_checkpoint

        try:
            known = loaded.get(self.version(number).weights_version)
        except VersionError as error:
            if number == SHIPPED:
                raise CheckpointError(str(error)) from error
            raise
        return load_checkpoint(self._files.path(number), device=device) if known is None else known

    def _check_routes(self, routes: Routes, new: Mapping[int, ClassRegistry] | None = None) -> None:
        """VersionError for routes to versions that cannot answer; `new` has the classes of one that is not written."""
        from kprism_model.classes import ClassRegistry

        known = dict(new or {})
        for number in routes.numbers():
            if number not in known:
                version = self.version(number)
                if version.earlier:
                    raise VersionError(f"there are routes to version {number}, which is of an earlier network")
                known[number] = ClassRegistry(version.classes)
        for name in routes.names(SEMANTIC):
            number = routes.by_mode[SEMANTIC][name]
            if name not in known[number]:
                raise VersionError(f"{name!r} has a route to version {number}, which knows no such class")

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
        """Why a version cannot serve: what is wrong with its files or those of a version that it has routes to.

        None if all weights are those that were written.
        """
        fault = self._files.fault(version)
        for number in version.routes.numbers():
            if fault is None and number != version.number:
                fault = self._fault_of_part(version, number)
        return fault

    def _fault_of_part(self, version: Version, number: int) -> str | None:
        try:
            fault = self._files.fault(self.version(number))
        except VersionError as error:
            fault = str(error)
        return None if fault is None else f"version {version.number} of the weights cannot serve: {fault}"

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
        """Delete the oldest versions; never the serving one, its parent, nor what these two have routes to."""
        pointer = self._pointer()
        protected = {pointer.number, *pointer.ancestors[:1]}
        for number in tuple(protected):
            with suppress(VersionError):
                protected.update(self.version(number).routes.numbers())
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
        return self._pointer_file.read(self._own_numbers)

    def _own_numbers(self) -> list[int]:
        """The shipped version and those that were trained here, ascending: an imported one serves only if chosen."""
        own = [version.number for version in self.known() if "origin" not in version.metadata]
        return own or [SHIPPED]
