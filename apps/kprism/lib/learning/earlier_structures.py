# SPDX-License-Identifier: Apache-2.0
"""Structures that a version of the site has learned, but that no network answers by name now.

The version is of an earlier network and cannot serve after an upgrade, somebody went back to another version, or the
gate has withdrawn it. Its list of structures is still used: they are segmented by reference to labelled cases.
"""

from __future__ import annotations

from kprism_model.classes import ClassRegistry
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_store import SubmissionStore
from lib.learning.versions import Versions


class EarlierStructures:
    """Structures that versions know and that labelled cases of the site show."""

    def __init__(self, versions: Versions, store: SubmissionStore, label_registry: LabelRegistry) -> None:
        self._versions, self._store, self._label_registry = versions, store, label_registry

    def unknown_to(self, registry: ClassRegistry) -> list[str]:
        """Their names, without the structures in `registry`."""
        canonical = self._label_registry.canonical
        labelled = [canonical(name) for submission in self._store.submissions() for name in submission.structures]
        unknown = [name for name in dict.fromkeys(labelled) if name not in registry]
        if not unknown:  # the usual case: no need to read the versions
            return []
        known = [name for version in self._versions.known() for name in version.classes]
        earlier = {canonical(name) for name in known}
        return [name for name in unknown if name in earlier]
