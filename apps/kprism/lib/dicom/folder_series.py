# SPDX-License-Identifier: Apache-2.0
"""A series of files in a folder: which of them count, and when they are others than before."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib.dicom.dicom_files import Facts
from lib.dicom.folder_index import Entry
from lib.dicom.web import SeriesEntry


@dataclass(frozen=True)
class FolderSeries:
    """A series as it is listed: `files` maps SOP instances to files, each instance once.

    `state` changes with the files. Three things are wrong: files of the same series in `other_studies`, `doubles` with
    the identifier of another image that they are no copy of, and objects without images among images (kind -> number).
    """

    facts: Facts
    files: Mapping[str, Path]
    state: str
    other_studies: tuple[str, ...] = ()
    doubles: tuple[Path, ...] = ()
    without_image: Mapping[str, int] = field(default_factory=dict)

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
    of_study = {path: found for path, found in objects.items() if found.facts.study == study}
    images = {path: found for path, found in of_study.items() if found.facts.may_be_image}
    chosen = images or of_study
    instances: dict[str, Path] = {}
    doubles = []
    for path, found in chosen.items():
        first = instances.setdefault(found.instance, path)
        if found.mark and chosen[first].mark and found.mark != chosen[first].mark:
            doubles.append(path)
    state = hashlib.sha256()
    for instance, path in sorted(instances.items()):
        state.update(f"{instance} {files[path].stamp}\n".encode())
    return FolderSeries(
        chosen[min(instances.values())].facts,
        instances,
        state.hexdigest()[:16],
        tuple(sorted(studies.keys() - {study})),
        tuple(doubles),
        Counter(found.facts.kind for path, found in of_study.items() if path not in chosen),
    )
