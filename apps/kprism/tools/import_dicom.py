# SPDX-License-Identifier: Apache-2.0
"""DICOM files on their way into a DICOMweb server or another folder: as they are, each instance once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lib.dicom.dicom_files import UNREADABLE, file_bytes
from lib.dicom.folder_index import FolderIndex
from lib.dicom.folder_series import FolderSeries, series_of
from lib.dicom.web import DicomWeb, StoreDownError, StoreError

INSTANCES_PER_REQUEST, BYTES_PER_REQUEST = 32, 32 << 20
"""What one request holds at most; a larger instance has a request of its own."""


@dataclass
class Tally:
    """What was imported: DICOM `instances`, those that were `known` to the store, and `images` of other types."""

    instances: int = 0
    known: int = 0
    images: int = 0

    def __str__(self) -> str:
        known = f"; {self.known:,} were there already" if self.known else ""
        return f"{self.instances:,} DICOM instances{known}"


def find_dicom(path: Path) -> FolderIndex:
    """The DICOM files at a path: the file itself, or those in a folder and its subfolders."""
    index = FolderIndex(path if path.is_dir() else path.parent)
    if not path.is_dir():
        index.add(path)
        return index
    with tqdm(desc=f"{path.name}: looking for DICOM", unit="file", disable=not sys.stderr.isatty()) as bar:
        for _ in index.scan():
            done, bar.total = index.progress or (bar.n, bar.n)
            bar.update(done - bar.n)
    return index


def import_dicom(index: FolderIndex, store: DicomWeb | Path, tally: Tally) -> Iterator[str]:
    """Store all objects of an index, of every kind; yields a message for each that is left out, and counts.

    StoreDownError if the server does not answer.
    """
    series = [series_of(index.files_of(name)) for name in sorted(index.series)]
    total = sum(len(entry.files) for entry in series)
    with tqdm(total=total, desc=index.root.name, unit="instance", disable=not total or not sys.stderr.isatty()) as bar:
        for entry in series:
            yield from _import_series(entry, store, tally, bar)
            if entry.other_studies:
                studies = ", ".join(entry.other_studies)
                yield f"series {entry.facts.series} lies in several studies; its files in {studies} are left out"


def left_out(index: FolderIndex) -> list[str]:
    """A message for each DICOM file that cannot be used."""
    reasons = {**{path: entry.reason for path, entry in index.odd.items()}, **index.unreadable}
    return [f"{path} {reason}" for path, reason in sorted(reasons.items()) if reason]


def _import_series(entry: FolderSeries, store: DicomWeb | Path, tally: Tally, bar: tqdm[None]) -> Iterator[str]:
    known = _known(entry, store)
    new = {instance: path for instance, path in entry.files.items() if instance not in known}
    tally.known += len(entry.files) - len(new)
    bar.update(len(entry.files) - len(new))
    batch: dict[str, bytes] = {}
    for instance, path in new.items():
        try:
            batch[instance] = file_bytes(path)
        except UNREADABLE as error:
            yield f"{path.name} cannot be read: {error}"
        if len(batch) >= INSTANCES_PER_REQUEST or sum(map(len, batch.values())) >= BYTES_PER_REQUEST:
            yield from _send(entry, batch, store, tally)
            bar.update(len(batch))
            batch = {}
    if batch:
        yield from _send(entry, batch, store, tally)
        bar.update(len(batch))


def _known(entry: FolderSeries, store: DicomWeb | Path) -> set[str]:
    """The instances of a series that the store has."""
    if isinstance(store, Path):
        return {path.stem for path in (store / entry.facts.series).glob("*.dcm")}
    if store.find(entry.facts.series) is None:
        return set()
    return store.instances(entry.facts.study, entry.facts.series)


def _send(entry: FolderSeries, batch: Mapping[str, bytes], store: DicomWeb | Path, tally: Tally) -> Iterator[str]:
    if isinstance(store, Path):
        folder = store / entry.facts.series
        folder.mkdir(parents=True, exist_ok=True)
        for instance, content in batch.items():
            partial = folder / f"{instance}.partial"
            partial.write_bytes(content)
            os.replace(partial, folder / f"{instance}.dcm")
        refused: dict[str, str] = {}
    else:
        try:
            refused = store.store_files(list(batch.values()))
        except StoreDownError:
            raise
        except StoreError as error:
            refused = dict.fromkeys(batch, str(error))
    tally.instances += len(batch.keys() - refused.keys())
    for instance in batch.keys() & refused.keys():
        yield f"{entry.files[instance].name} was refused by the store: {refused[instance]}"
