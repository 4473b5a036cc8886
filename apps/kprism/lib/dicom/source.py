# SPDX-License-Identifier: Apache-2.0
"""What the datastore asks of the place where the DICOM objects are: a DICOMweb server, or a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from pydicom.dataset import Dataset

from lib.dicom.web import SeriesEntry


class DicomSource(Protocol):
    """Series that can be listed and read, and a place for new ones; see `DicomWeb` for what each method does."""

    def search(self, **filters: str) -> list[SeriesEntry]:
        """Series that match all filters."""

    def pages(self, **filters: str) -> Iterator[list[SeriesEntry]]:
        """The same in parts, each series once."""

    def find(self, series: str, **filters: str) -> SeriesEntry | None:
        """The entry of a series, if it is there and matches."""

    def state(self, series: str) -> str:
        """A text that changes with the content of a series; always "" where a series of a label never changes."""

    def fetch(self, study: str, series: str) -> Iterator[Dataset]:
        """The complete instances of a series."""

    def headers(self, study: str, series: str, attributes: Iterable[str]) -> list[Dataset]:
        """The given attributes of the instances of a series."""

    def header_items(self, study: str, series: str) -> list[dict[str, Any]]:
        """The headers of a series as DICOM JSON."""

    def instance_file(self, study: str, series: str, instance: str) -> bytes:
        """One complete instance as a DICOM file."""

    def store(self, instances: Iterable[Dataset]) -> None:
        """Store instances."""
