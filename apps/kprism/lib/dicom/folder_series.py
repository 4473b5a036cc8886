# SPDX-License-Identifier: Apache-2.0
"""A series of files in a folder: which of them count, and when they are others than before."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib.dicom.dicom_files import Facts
from lib.dicom.folder_index import Entry
from lib.dicom.web import SeriesEntry


@dataclass(frozen=True)
class FolderSeries:
    """A series as it is listed: `files` maps SOP instances to files, each instance once.

    `state` changes with the files. `other_studies` are those in which files of the same series lie, which is wrong.
    """

    facts: Facts
    files: Mapping[str, Path]
    state: str
    other_studies: tuple[str, ...] = ()

    @property
    def entry(self) -> SeriesEntry:
        """The series in a listing."""
        facts = self.facts
        return SeriesEntry(facts.study, facts.series, facts.kind, facts.description, facts.patient, len(self.files))


def series_of(files: Mapping[Path, Entry]) -> FolderSeries:
    """The series that files belong to, those of the study with most of them; of equal instances the first by path."""
    objects = {path: entry.object for path, entry in sorted(files.items()) if entry.object is not None}
    studies = Counter(found.facts.study for found in objects.values())
    study = min(studies, key=lambda name: (-studies[name], name))
    chosen = {path: found for path, found in objects.items() if found.facts.study == study}
    instances: dict[str, Path] = {}
    for path, found in chosen.items():
        instances.setdefault(found.instance, path)
    state = hashlib.sha256()
    for instance, path in sorted(instances.items()):
        state.update(f"{instance} {files[path].stamp}\n".encode())
    first = chosen[min(instances.values())].facts
    return FolderSeries(first, instances, state.hexdigest()[:16], tuple(sorted(studies.keys() - {study})))
