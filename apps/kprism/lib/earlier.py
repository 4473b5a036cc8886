# SPDX-License-Identifier: Apache-2.0
"""Versions of an earlier network: what an upgrade that ships another architecture leaves of a site's weights.

Such a version cannot serve: its weights do not fit what the app does now, nor can a training go on from them. What it
says of itself still counts: the structures that it knew are answered after labelled cases until a training has taught
them to the present network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig

if TYPE_CHECKING:
    from lib.labels import LabelBook
    from lib.ledger import Ledger
    from lib.versions import Versions


_OF_TRAINING = ("num_classes", "kinds", "kind_centres")  # they differ with what the same network was trained on


def is_of_earlier_network(config: Mapping[str, Any], shipped: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's `config` is of another network than that of the shipped weights.

    Both are the objects under "config" in a checkpoint's JSON. Networks are the same if these are equal in all but the
    number of classes and the kinds of images that are told apart. Keys that one of them lacks count with the value that
    `KPrismConfig.from_dict` gives them, if it gives them one; a configuration that it refuses is compared as it stands.
    """
    return _architecture(config) != _architecture(shipped)


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        complete = KPrismConfig.from_dict(config).to_dict()
    except (TypeError, ValueError):
        complete = dict(config)
    return {name: value for name, value in complete.items() if name not in _OF_TRAINING}


class EarlierStructures:
    """Structures that versions of an earlier network knew and that labelled cases of the site show."""

    def __init__(self, versions: Versions, ledger: Ledger, book: LabelBook) -> None:
        self._versions, self._ledger, self._book = versions, ledger, book

    def unknown_to(self, registry: ClassRegistry) -> list[str]:
        """Their names, without those that the weights with the classes `registry` know themselves."""
        labelled = [self._book.canonical(name) for entry in self._ledger.submissions() for name in entry.structures]
        unknown = [name for name in dict.fromkeys(labelled) if name not in registry]
        if not unknown:  # as at most sites, most of the time: no need to look at the versions
            return []
        known = [name for version in self._versions.known() if version.earlier for name in version.classes]
        earlier = {self._book.canonical(name) for name in known}
        return [name for name in unknown if name in earlier]
