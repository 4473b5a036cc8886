# SPDX-License-Identifier: Apache-2.0
"""Requests to a DICOMweb server (PS3.18): list series, fetch one, store instances. Failures have clear messages."""

from __future__ import annotations

import io
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.web import _Transaction
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from lib.dicom.access import StoreAccess, TokenFileError, refusal, tls_refusal
from lib.errors import RequestError

logger = logging.getLogger(__name__)

SERIES_FIELDS = ("SeriesDescription", "SeriesDate", "SeriesTime", "PatientID", "NumberOfSeriesRelatedInstances")

FIRST_PAGE, PAGE = 200, 1000
"""Series that one request asks for, the first of a listing and the others; the server may give fewer."""

NON_IMAGE_MODALITIES = {
    *("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "AU", "ECG", "EPS"),
    *("HD", "PLAN", "RWV", "SMR", "STAIN", "M3D", "ANN"),
}
"""Modalities of series without images to segment."""


class StoreError(RequestError):
    """The DICOMweb server refuses, or its answer is not DICOMweb."""

    status = 502


class StoreAccessError(StoreError):
    """The DICOMweb server wants to know who asks, or is not the one that is believed; the message says what helps."""


class StoreDownError(StoreError):
    """The DICOMweb server does not answer or fails at the moment; the request is correct."""

    status = 503


NO_DICOMWEB = "has no DICOMweb at this address; that of Orthanc ends with /dicom-web"

DICOM_FILE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""What is asked for: DICOM files in the transfer syntax that the server has them in."""


@dataclass(frozen=True)
class SeriesEntry:
    """A series in a listing of the server."""

    study: str
    series: str
    modality: str
    description: str
    patient: str
    instances: int

    @property
    def holds_images(self) -> bool:
        """Whether the series has images."""
        return self.modality not in NON_IMAGE_MODALITIES

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> SeriesEntry:
        """From one item of a QIDO-RS answer; there are thousands, so no dataset is made of it."""
        return cls(
            study=_text(answer, "0020000D"),
            series=_text(answer, "0020000E"),
            modality=_text(answer, "00080060"),
            description=_text(answer, "0008103E"),
            patient=_text(answer, "00100020"),
            instances=int(_text(answer, "00201209") or 0),
        )


def _text(answer: Mapping[str, Any], tag: str) -> str:
    """The value of an attribute in DICOM JSON; empty if it has none."""
    values = (answer.get(tag) or answer.get(tag.lower()) or {}).get("Value") or ()
    return "\\".join("" if value is None else str(value) for value in values)


class DicomWeb:
    """A DICOMweb server through `client`, whose session should be one of `StoreAccess`, which has a timeout."""

    def __init__(self, client: DICOMwebClient) -> None:
        client.set_http_retry_params(retry=False)  # it would retry for half a minute; the user can retry
        self.client = client

    @classmethod
    def at(cls, url: str, access: StoreAccess | None = None) -> DicomWeb:
        """The server at an address such as http://127.0.0.1:8042/dicom-web."""
        session = (access or StoreAccess.parse({})).session()
        return cls(DICOMwebClient(url=url.rstrip("/"), session=session))

    @property
    def session(self) -> requests.Session:
        """The session of all requests, for those that this class does not know."""
        session: requests.Session = self.client._session
        return session

    def search(self, **filters: str) -> list[SeriesEntry]:
        """Series that match all filters, such as Modality="SEG"."""
        return [entry for page in self.pages(**filters) for entry in page]

    def pages(self, **filters: str) -> Iterator[list[SeriesEntry]]:
        """The same in pages, each series once.

        Servers have limits of their own, so a page that is short is not the last one. Some ignore `limit`, `offset` or
        both, or refuse them; from those all series are asked for at once. A series may be missing if others are stored
        or deleted meanwhile; a page without a new series is one that was shifted by such, so the next one is asked for.
        """
        known: set[str] = set()
        first, offset, has_limit, is_shifted = "", 0, True, False
        for number in count():
            items = self._page(filters, offset)
            if items is None:
                break
            if not items:
                return
            new = _entries(items, known)
            known.update(entry.series for entry in new)
            if new:
                yield new
            begins = SeriesEntry.of(items[0]).series
            if number == 0:
                first, has_limit = begins, len(items) <= FIRST_PAGE
            elif number == 1 and begins == first:  # it does not skip any
                if not has_limit:
                    return
                break
            if new:
                offset, is_shifted = len(known), False
            elif is_shifted:
                break
            else:
                offset, is_shifted = offset + len(items), True
        logger.debug("%s does not list series in pages", self.client.base_url)
        if rest := _entries(self._search(filters), known):
            yield rest

    def _page(self, filters: Mapping[str, str], offset: int) -> list[dict[str, Any]] | None:
        """A page of a listing after `offset` series; None if the server refuses it."""
        if not offset:
            return self._search(filters, limit=FIRST_PAGE)
        try:
            return self._search(filters, limit=PAGE, offset=offset)
        except (StoreDownError, StoreAccessError):
            raise
        except StoreError:
            return None

    def find(self, series: str, **filters: str) -> SeriesEntry | None:
        """The entry of a series, if the server has it and it matches. Some servers match parts of an identifier."""
        entries = map(SeriesEntry.of, self._search({**filters, "SeriesInstanceUID": series}))
        return next((entry for entry in entries if entry.series == series), None)

    def state(self, series: str) -> str:
        """Always the same: a DICOMweb server changes no object."""
        return ""

    def studies(self, filters: Mapping[str, str]) -> frozenset[str]:
        """The studies that match all filters of a search for studies, such as ModalitiesInStudy="CT".

        Servers may give fewer at once than there are, and some of those ignore `offset` or refuse it.
        """
        known: set[str] = set()
        while True:
            try:
                with self._translated_errors():
                    found = self.client.search_for_studies(search_filters=dict(filters), offset=len(known) or None)
            except StoreError as error:
                if known and type(error) is StoreError:
                    return frozenset(known)
                raise
            new = {_text(item, "0020000D") for item in found} - known
            if not new:
                return frozenset(known)
            known |= new

    def _search(
        self, filters: Mapping[str, str], *, limit: int | None = None, offset: int | None = None
    ) -> list[dict[str, Any]]:
        with self._translated_errors(NO_DICOMWEB):
            found: list[dict[str, Any]] = self.client.search_for_series(
                search_filters=dict(filters), fields=list(SERIES_FIELDS), limit=limit, offset=offset
            )
        if not all(isinstance(item, dict) for item in found):
            raise StoreError(f"the DICOMweb server {self.client.base_url} {NO_DICOMWEB}")
        return found

    def fetch(self, study: str, series: str) -> Iterator[Dataset]:
        """The complete instances of a series, as the server has them: not every server can decompress them all."""
        with self._translated_errors():
            yield from self.client.iter_series(study, series, media_types=(("application/dicom", "*"),))

    def headers(self, study: str, series: str, attributes: Iterable[str]) -> list[Dataset]:
        """The given attributes of the instances of a series, as far as they have them."""
        tags = {f"{tag_for_keyword(name):08X}" for name in attributes}
        with self._translated_errors():
            items = self.client.retrieve_series_metadata(study, series)
            return [Dataset.from_json({tag: item[tag] for tag in tags & item.keys()}) for item in items]

    def header_items(self, study: str, series: str) -> list[dict[str, Any]]:
        """The headers of a series as DICOM JSON, not parsed."""
        with self._translated_errors():
            return list(self.client.retrieve_series_metadata(study, series))

    def instance_file(self, study: str, series: str, instance: str) -> bytes:
        """One complete instance as a DICOM file, as the server has it; StoreError if the server does not have it.

        The answer is not compressed on the way: Orthanc takes seven times as long for that as for the answer itself.
        """
        client = self.client
        address = client._get_instances_url(_Transaction.RETRIEVE, study, series, instance)
        with self._translated_errors(missing=f"has no image {instance} any more"):
            response = client._http_get(address, headers={"Accept": DICOM_FILE, "Accept-Encoding": "identity"})
            if response.headers.get("content-type", "").lower().startswith("application/dicom;"):
                return bytes(response.content)
            try:
                parts = [bytes(part) for part in client._decode_multipart_message(response, stream=False)]
            except ValueError as error:
                raise StoreError(f"{client.base_url} sent no DICOM file for image {instance}: {error}") from error
        if not parts:
            raise StoreError(f"the DICOMweb server {client.base_url} sent nothing for image {instance}")
        return parts[0]

    def store(self, instances: Iterable[Dataset]) -> None:
        """Store instances (STOW-RS); StoreError if the server refuses one."""
        with self._translated_errors():
            answer = self.client.store_instances(list(instances))
        failed = answer.get("FailedSOPSequence") or []
        if failed:
            reason = int(failed[0].get("FailureReason", 0))
            raise StoreError(f"the DICOMweb server refused {len(failed)} instances (failure reason {reason:#06x})")

    def store_files(self, contents: Sequence[bytes]) -> dict[str, str]:
        """Store DICOM files as they are (STOW-RS); SOP instance -> reason for those that the server refuses.

        StoreError if it refuses all of them without a word about each.
        """
        client = self.client
        with self._translated_errors():
            try:
                answer = client._http_post_multipart_application_dicom(
                    client._get_studies_url(_Transaction.STORE), contents
                )
            except requests.HTTPError as error:
                told = _told_failures(error.response)
                if told is None:
                    raise
                answer = told
        failed = answer.get("FailedSOPSequence") or []
        return {
            str(item.get("ReferencedSOPInstanceUID", "")): f"failure reason {int(item.get('FailureReason', 0)):#06x}"
            for item in failed
        }

    def instances(self, study: str, series: str) -> set[str]:
        """The SOP instances that the server has of a series."""
        found: set[str] = set()
        with self._translated_errors():
            while True:
                items = self.client.search_for_instances(study, series, limit=PAGE, offset=len(found))
                new = {_text(item, "00080018") for item in items} - found
                if not new:
                    return found
                found |= new

    @contextmanager
    def _translated_errors(self, missing: str = "") -> Iterator[None]:
        """Errors with messages; `missing` is what the server lacks if it answers that something is not there."""
        server = f"the DICOMweb server {self.client.base_url}"
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            if error.response is not None and (what := refusal(error.response)):
                raise StoreAccessError(f"{server} {what}") from error
            if missing and status in (404, 410):
                raise StoreError(f"{server} {missing}") from error
            kind = StoreDownError if status >= 500 else StoreError
            hint = f"; perhaps it {missing}" if missing and status in (400, 405) else ""
            raise kind(f"{server} answered with status {status}; nothing was changed{hint}") from error
        except requests.JSONDecodeError as error:
            raise StoreError(f"{server} did not answer with DICOM JSON; is the address right?") from error
        except TokenFileError as error:
            raise StoreAccessError(str(error)) from error
        except requests.RequestException as error:
            if what := tls_refusal(error):
                raise StoreAccessError(f"{server} {what}") from error
            # it is off, hangs, or ended during the answer
            raise StoreDownError(f"{server} does not answer; nothing was changed") from error


def _told_failures(response: requests.Response | None) -> Dataset | None:
    """What a server says of each instance when it refuses all of them; None if it does not."""
    if response is None or response.status_code != 409:
        return None
    try:
        answer = Dataset.from_json(response.json())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return answer if answer.get("FailedSOPSequence") else None


def _entries(items: Iterable[Mapping[str, Any]], known: Container[str]) -> list[SeriesEntry]:
    """The series of an answer, each once, without those that are `known`."""
    entries = {entry.series: entry for entry in map(SeriesEntry.of, items)}
    return [entry for series, entry in entries.items() if series and series not in known]


def as_bytes(instance: Dataset) -> bytes:
    """An instance as a DICOM file."""
    stream = io.BytesIO()
    instance.save_as(stream, write_like_original=False)
    return stream.getvalue()
