# SPDX-License-Identifier: Apache-2.0
"""Versions of an earlier network: what an upgrade that ships another architecture leaves of a site's weights.

Such a version cannot serve: its weights do not fit what the app does now, nor can a training go on from them. What it
says of itself still counts: the structures that it knew are answered after labelled cases until a training has taught
them to the present network.
"""

from __future__ import annotations

from kprism_model.classes import ClassRegistry
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_store import SubmissionStore
from lib.learning.versions import Versions


class EarlierStructures:
    """Structures that versions of an earlier network knew and that labelled cases of the site show."""

    def __init__(self, versions: Versions, ledger: SubmissionStore, book: LabelRegistry) -> None:
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
