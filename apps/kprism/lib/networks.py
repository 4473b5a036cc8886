# SPDX-License-Identifier: Apache-2.0
"""The networks that answer requests: that of the shipped weights, and those of the site's versions with their routes.

A request takes a `Networks` once and keeps it to its end. The object never changes; another version of the weights
replaces it as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry, name_key
from kprism_model.predictor import Predictor
from lib.routes import SEMANTIC, Routes

SHIPPED_NAME = "shipped"
"""Name of the network of the shipped weights."""


@dataclass(frozen=True, eq=False)
class Network:
    """One checkpoint on a device: `version` is the hash of its weights, `path` its weights file.

    `name` is "shipped" or "version N".
    """

    name: str
    predictor: Predictor
    registry: ClassRegistry
    version: str
    device: str
    path: Path


def network_of(checkpoint: Checkpoint, device: str, *, number: int | None = None) -> Network:
    """A loaded checkpoint on a device: version `number`, or None for the shipped weights."""
    name = SHIPPED_NAME if number is None else f"version {number}"
    predictor = Predictor(checkpoint.model, checkpoint.registry, device=device)
    return Network(name, predictor, checkpoint.registry, checkpoint.weights_version, device, checkpoint.path)


@dataclass(frozen=True, eq=False)
class Networks:
    """The shipped network, and with `routes` the `parts`: the networks of versions, by number.

    kinds: structure -> kinds of images (names of `ImageKind`) that the site labelled it in. provisional: mode ->
    structures whose route too few patients have confirmed. serving: hash of the weights of the version whose routes
    these are; None if there is none.
    """

    shipped: Network
    parts: Mapping[int, Network] = field(default_factory=dict)
    routes: Routes = field(default_factory=Routes)
    kinds: Mapping[str, Collection[str]] = field(default_factory=dict)
    provisional: Mapping[str, Collection[str]] = field(default_factory=dict)
    serving: str | None = None

    @property
    def version(self) -> str:
        """Names the weights in answers and caches: the hash of the serving version's file, or of the shipped one."""
        return self.serving or self.shipped.version

    @property
    def device(self) -> str:
        """The device of all networks."""
        return self.shipped.device

    @property
    def path(self) -> Path:
        """The weights file of the serving version, or the shipped one."""
        return next((network.path for network in self if network.version == self.version), self.shipped.path)

    def __iter__(self) -> Iterator[Network]:
        """The shipped network, then the others by number."""
        yield self.shipped
        for number in sorted(self.parts):
            yield self.parts[number]

    def of(self, mode: str, structure: str) -> Network:
        """The network that answers a structure in a mode."""
        number = self.routes.version_for(mode, structure)
        return self.shipped if number is None else self.parts[number]

    def grouped(self, mode: str, structures: Iterable[str]) -> dict[Network, tuple[str, ...]]:
        """The structures by the network that answers them, in the order of `__iter__`, without unused networks."""
        groups: dict[Network, list[str]] = {network: [] for network in self}
        for name in structures:
            groups[self.of(mode, name)].append(name)
        return {network: tuple(names) for network, names in groups.items() if names}

    @cached_property
    def semantic_classes(self) -> ClassRegistry:
        """The structures that are segmented by name: the shipped classes, then those that only versions answer."""
        known = self.shipped.registry
        return known.add(name for name in self.routes.names(SEMANTIC) if name not in known)

    def kinds_of(self, structure: str) -> frozenset[str]:
        """The kinds of images that the site labelled a structure in; empty if they are not known."""
        return self._kinds.get(name_key(structure), frozenset())

    def is_provisional(self, mode: str, structure: str) -> bool:
        """Whether a version answers a structure in a mode though too few patients have confirmed it."""
        names = {name_key(name) for name in self.provisional.get(mode, ())}
        return self.routes.version_for(mode, structure) is not None and name_key(structure) in names

    @cached_property
    def _kinds(self) -> dict[str, frozenset[str]]:
        return {name_key(name): frozenset(kinds) for name, kinds in self.kinds.items()}
