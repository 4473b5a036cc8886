# SPDX-License-Identifier: Apache-2.0
"""A DICOMweb server in memory, as the client of a `DicomStore`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import requests
from pydicom.dataset import Dataset

from lib.dicom.web import as_bytes
from tests.unit.dicom_arrivals import items_of


@dataclass
class MemoryServer:
    """As `DICOMwebClient`. `asked` are its searches, `fetched` the instances whose pixels were asked for.

    While it `is_down`, nothing is answered. What is asked for a series in `failing` fails with that error.
    """

    instances: list[Dataset] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)
    is_down: bool = False
    base_url: str = "http://store"

    @property
    def _session(self) -> Any:
        return SimpleNamespace(mount=lambda scheme, adapter: None)

    def set_http_retry_params(self, retry: bool) -> None:
        """Nothing here is tried again."""

    def search_for_series(
        self, search_filters: dict[str, Any], fields: list[str], limit: int | None = None, offset: int | None = None
    ) -> list[dict[str, Any]]:
        """The series that match, a page of them."""
        self._answer()
        self.asked.append(dict(search_filters))
        found: dict[str, list[Dataset]] = {}
        for instance in self.instances:
            if all(str(instance.get(name, "")) == value for name, value in search_filters.items()):
                found.setdefault(str(instance.SeriesInstanceUID), []).append(instance)
        items = [_item(instances) for instances in found.values()]
        return items[offset or 0 :][:limit]

    def retrieve_series_metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        """The headers of a series."""
        return items_of(self._series(series))

    def iter_series(self, study: str, series: str, media_types: Any) -> Iterator[Dataset]:
        """The instances of a series."""
        return iter(self._series(series))

    def store_instances(self, instances: Iterable[Dataset]) -> Dataset:
        """Take instances."""
        self._answer()
        self.instances += instances
        return Dataset()

    def _get_instances_url(self, transaction: Any, study: str, series: str, instance: str) -> str:
        return f"{series} {instance}"

    def _http_get(self, address: str, headers: dict[str, str]) -> Any:
        series, identifier = address.split()
        self.fetched.append(identifier)
        [instance] = [item for item in self._series(series) if item.SOPInstanceUID == identifier]
        return SimpleNamespace(headers={"content-type": "application/dicom; "}, content=as_bytes(instance))

    def _series(self, series: str) -> list[Dataset]:
        self._answer()
        if series in self.failing:
            raise self.failing[series]
        return [instance for instance in self.instances if instance.SeriesInstanceUID == series]

    def _answer(self) -> None:
        if self.is_down:
            raise requests.ConnectionError("down")


def refusal(status: int) -> requests.HTTPError:
    """The error of an answer with a status."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


def _item(instances: list[Dataset]) -> dict[str, Any]:
    listed = Dataset()
    first = instances[0]
    for name in ("Modality", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        setattr(listed, name, first.get(name))
    listed.NumberOfSeriesRelatedInstances = len(instances)
    item: dict[str, Any] = listed.to_json_dict()
    return item
