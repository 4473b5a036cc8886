# SPDX-License-Identifier: Apache-2.0
"""A store of DICOM files in memory that fails as it is told, and series that arrive from it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from lib.dicom.fetch_pool import FetchPool
from lib.dicom.series_headers import SeriesHeaders
from lib.dicom.series_volume import SeriesVolume
from lib.dicom.web import SeriesEntry, StoreDownError, StoreError, as_bytes


def items_of(instances: Sequence[Dataset]) -> list[dict[str, Any]]:
    """The headers of instances as a server sends them."""
    items = [instance.to_json_dict(suppress_invalid_tags=True) for instance in instances]
    return [{tag: value for tag, value in item.items() if not tag.startswith("7FE0")} for item in items]


@dataclass
class MemoryStore:
    """As `DicomWeb`, for one series. It ends after `ends_after` instances; those in `missing` are not there.

    While `gate` is not set, requests for pixels wait.
    """

    instances: list[Dataset]
    ends_after: int = 1 << 30
    missing: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    headers_asked: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.files = {str(instance.SOPInstanceUID): as_bytes(instance) for instance in self.instances}
        self.gate.set()
        self._lock = threading.Lock()

    @property
    def entry(self) -> SeriesEntry:
        """The series in a listing."""
        first = self.instances[0]
        study, series = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
        return SeriesEntry(study, series, str(first.Modality), "", "", len(self.instances))

    def header_items(self, study: str, series: str) -> list[dict[str, Any]]:
        """The headers."""
        self.headers_asked += 1
        return items_of(self.instances)

    def fetch(self, study: str, series: str) -> list[Dataset]:
        """The instances."""
        return self.instances

    def instance_file(self, study: str, series: str, instance: str) -> bytes:
        """One instance."""
        self.gate.wait(20)
        with self._lock:
            if len(self.asked) >= self.ends_after:
                raise StoreDownError("the server does not answer; nothing was changed")
            self.asked.append(instance)
        if instance in self.missing:
            raise StoreError(f"the server answered with status 404 for {instance}")
        return self.files[instance]


def arriving(store: MemoryStore, folder: Path, pool: FetchPool | None = None, *, wide: bool = False) -> SeriesVolume:
    """The volume of a store's series, of which nothing has arrived."""
    headers = SeriesHeaders(tuple(items_of(store.instances)), len(store.instances), wide)
    entry = store.entry
    headers.write(folder / entry.series)
    series, kind = headers.describe(folder / entry.series)

    def fetch(instance: str) -> bytes:
        return store.instance_file(entry.study, entry.series, instance)

    return SeriesVolume(folder / f"{entry.series}.nii", series, kind, fetch, pool or FetchPool())
