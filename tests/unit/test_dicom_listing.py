# SPDX-License-Identifier: Apache-2.0
"""Listing a DICOMweb server with thousands of series: pages of servers of every kind, and requests that do not wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from dicomweb_client import DICOMwebClient

from lib.dicom.arrival_times import ArrivalTimes
from lib.dicom.datastore import FINAL, DicomStore
from lib.dicom.listing import SeriesListing
from lib.dicom.refresher import LONGEST_PAUSE_SECONDS, PAUSE, Refresher
from lib.dicom.seg_index import SegIndex
from lib.dicom.web import FIRST_PAGE, PAGE, DicomWeb, SeriesEntry, StoreDownError, StoreError

Pages = Callable[[list[Any], int, int], list[Any]]
"""What a server gives of all that it has found, with a limit and an offset."""


class Qido:
    """A DICOMweb server that can only list: `series` are the items of its answers, `give` its way to page."""

    def __init__(self, give: Pages) -> None:
        self.give = give
        self.series: list[dict[str, Any]] = []
        self.queries: list[dict[str, str]] = []
        self.refused = 0  # from which offset on the server refuses to answer; 0: never
        self.answering = Event()
        self.answering.set()
        handler = type("Handler", (_Handler,), {"qido": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, count: int, modality: str = "CT") -> list[str]:
        """Add series; their identifiers."""
        first = len(self.series)
        self.series += [item(number, modality) for number in range(first, first + count)]
        return [entry["0020000E"]["Value"][0] for entry in self.series[first:]]

    def answer(self, query: dict[str, str]) -> list[Any] | None:
        """The answer to a query; None if it is refused."""
        assert self.answering.wait(60)
        self.queries.append(query)
        limit, offset = int(query.get("limit", 10**9)), int(query.get("offset", 0))
        if self.refused and offset >= self.refused:
            return None
        found = [
            entry
            for entry in self.series
            if query.get("Modality") in (None, entry["00080060"]["Value"][0])
            and query.get("SeriesInstanceUID") in (None, entry["0020000E"]["Value"][0])
            and query.get("StudyInstanceUID") in (None, entry["0020000D"]["Value"][0])
        ]
        return self.give(found, limit, offset)

    def close(self) -> None:
        """End the server."""
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    qido: Qido

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        answer = self.qido.answer(query) if parts.path == "/series" else None
        self.send_response(404 if answer is None else 200 if answer else 204)
        self.send_header("Content-Type", "application/dicom+json")
        self.end_headers()
        if answer:
            self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


def item(number: int, modality: str) -> dict[str, Any]:
    return {
        "00080060": {"vr": "CS", "Value": [modality]},
        "0020000D": {"vr": "UI", "Value": [f"1.1.{number}"]},
        "0020000E": {"vr": "UI", "Value": [f"1.2.{number}"]},
        "00100020": {"vr": "LO", "Value": [f"P{number}"]},
        "00201209": {"vr": "IS", "Value": [3]},
    }


def as_asked(found: list[Any], limit: int, offset: int) -> list[Any]:
    return found[offset : offset + limit]


def capped(found: list[Any], limit: int, offset: int) -> list[Any]:
    return found[offset : offset + min(limit, 70)]


def all_at_once(found: list[Any], limit: int, offset: int) -> list[Any]:
    return found


def without_offset(found: list[Any], limit: int, offset: int) -> list[Any]:
    return found[:limit]


def without_limit(found: list[Any], limit: int, offset: int) -> list[Any]:
    return found[offset:]


def overlapping(found: list[Any], limit: int, offset: int) -> list[Any]:
    return found[max(0, offset - 10) : offset + limit]


@pytest.fixture
def qido(request: pytest.FixtureRequest) -> Iterator[Qido]:
    server = Qido(getattr(request, "param", as_asked))
    yield server
    server.close()


@pytest.mark.parametrize(
    ("qido", "first", "second"),
    [
        (as_asked, 5, 5),  # 200, 1000, 1000, 300, none
        (capped, 37, 37),
        (all_at_once, 2, 2),  # all, all again
        (without_offset, 3, 3),  # 200, the same and more, all without asking for a page
        (without_limit, 2, 2),
        (overlapping, 6, 6),
    ],
    indirect=["qido"],
)
def test_servers_of_every_kind_are_listed_once_and_to_the_end(qido: Qido, first: int, second: int) -> None:
    qido.add(2500)
    web = DicomWeb.at(qido.url)
    for queries in (first, second):
        qido.queries.clear()
        found = [entry.series for entry in web.search()]
        assert sorted(found) == sorted(f"1.2.{number}" for number in range(2500))
        assert len(qido.queries) == queries


def test_a_server_that_refuses_to_skip_series_is_asked_for_all(qido: Qido) -> None:
    qido.add(FIRST_PAGE + 5)
    qido.refused = 1
    assert len(DicomWeb.at(qido.url).search()) == FIRST_PAGE + 5


def test_a_page_that_was_shifted_is_not_taken_for_a_server_without_pages(qido: Qido) -> None:
    """Somebody stores a series, which comes first, between two pages."""
    qido.add(FIRST_PAGE)

    def shifting(found: list[Any], limit: int, offset: int) -> list[Any]:
        if offset == FIRST_PAGE and len(qido.series) == FIRST_PAGE:
            qido.series.insert(0, item(5000, "CT"))
            found = qido.series
        return found[offset : offset + limit]

    qido.give = shifting
    web = DicomWeb.at(qido.url)
    assert len(web.search()) == FIRST_PAGE  # the new one is in the next listing
    assert all("limit" in query for query in qido.queries)
    qido.queries.clear()
    qido.add(2 * PAGE)
    assert len(web.search()) == FIRST_PAGE + 1 + 2 * PAGE
    assert all("limit" in query for query in qido.queries)


def test_a_server_that_repeats_its_last_page_is_listed_to_the_end(qido: Qido) -> None:
    qido.add(FIRST_PAGE + 50)
    qido.give = lambda found, limit, offset: found[min(offset, len(found) - 10) :][:limit]
    assert len(DicomWeb.at(qido.url).search()) == FIRST_PAGE + 50


def test_nothing_is_found_with_one_query(qido: Qido) -> None:
    assert DicomWeb.at(qido.url).search(Modality="SEG") == []
    assert len(qido.queries) == 1


def test_one_series_is_found_with_one_query(qido: Qido) -> None:
    qido.add(PAGE)
    entry = DicomWeb.at(qido.url).find("1.2.700")
    assert entry == SeriesEntry("1.1.700", "1.2.700", "CT", "", "P700", 3)
    assert [set(query) - {"includefield"} for query in qido.queries] == [{"SeriesInstanceUID"}]


def test_answers_are_read_as_they_come() -> None:
    answer = {
        "00080060": {"vr": "CS", "Value": ["MR"]},
        "0020000d": {"vr": "UI", "Value": ["1.1"]},
        "0020000E": {"vr": "UI", "Value": ["1.2"]},
        "0008103E": {"vr": "LO", "Value": [None, "T1"]},
        "00100020": {"vr": "LO"},
        "00201209": {"vr": "IS", "Value": ["12"]},
    }
    assert SeriesEntry.of(answer) == SeriesEntry("1.1", "1.2", "MR", "\\T1", "", 12)


def listing(pages: Callable[[], Iterator[list[SeriesEntry]]]) -> SeriesListing:
    return SeriesListing(pages, {})


def entry(number: int) -> SeriesEntry:
    return SeriesEntry(f"1.1.{number}", f"1.2.{number}", "CT", "", f"P{number}", 1)


def test_the_first_page_is_used_while_the_others_come() -> None:
    go_on = Event()

    def pages() -> Iterator[list[SeriesEntry]]:
        yield [entry(0)]
        assert go_on.wait(60)
        yield [entry(1)]

    series = listing(pages)
    assert set(series.entries()) == {"1.2.0"}
    Thread(target=lambda: (time.sleep(0.1), go_on.set())).start()
    assert set(series.entries(complete=True)) == {"1.2.0", "1.2.1"}


def test_a_slow_listing_is_made_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.dicom.listing.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("lib.dicom.refresher.PATIENCE_SECONDS", -1.0)  # no listing is quick
    monkeypatch.setattr("lib.dicom.listing.LISTING_SECONDS", 0.0)
    monkeypatch.setattr("lib.dicom.refresher.PAUSE", 0.0)
    go_on, made = Event(), 0

    def pages() -> Iterator[list[SeriesEntry]]:
        nonlocal made
        made += 1
        if made > 1:
            assert go_on.wait(60)
        yield [entry(number) for number in range(made)]

    series = listing(pages)
    assert len(series.entries(complete=True)) == 1
    time.sleep(0.01)
    assert all(len(series.entries()) == 1 for _ in range(5))
    assert made == 2
    go_on.set()
    assert len(series.entries(refresh=True)) >= 3  # one that began after the question


def test_a_server_that_is_down_keeps_its_series_and_other_errors_are_told() -> None:
    answers: list[Any] = [[entry(0), entry(1)], StoreDownError("down"), StoreError("refused"), [entry(2)]]

    def pages() -> Iterator[list[SeriesEntry]]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield answer

    series = listing(pages)
    assert len(series.entries()) == 2
    assert len(series.entries(refresh=True)) == 2
    assert not series.is_current
    with pytest.raises(StoreError, match="refused"):
        series.entries(refresh=True)
    assert set(series.entries(refresh=True)) == {"1.2.2"}
    assert series.is_current


def test_many_who_ask_at_once_share_the_work() -> None:
    works, begun, go_on = 0, Event(), Event()

    def work() -> None:
        nonlocal works
        works += 1
        begun.set()
        assert go_on.wait(60)

    refresher = Refresher(work, 100.0, "test")
    threads = [Thread(target=refresher.now) for _ in range(8)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    time.sleep(0.2)  # until all of them wait
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert works == 2  # those who came during the first one share another


@pytest.mark.parametrize("busy", [None, 0.01, 1000.0])
def test_the_pause_after_long_work_has_a_limit_and_only_the_server_counts(busy: float | None) -> None:
    def work() -> float | None:
        time.sleep(0.2)
        return busy

    refresher = Refresher(work, 0.0, "test")
    refresher.now()
    if busy is None:
        assert 0.2 * PAUSE <= refresher.pause < LONGEST_PAUSE_SECONDS
    else:
        assert refresher.pause == min(busy * PAUSE, LONGEST_PAUSE_SECONDS)


def test_after_work_that_failed_there_is_no_pause() -> None:
    def work() -> float | None:
        time.sleep(0.1)
        raise StoreError("refused")

    refresher = Refresher(work, 0.0, "test")
    with pytest.raises(StoreError):
        refresher.now()
    assert refresher.pause == 0.0

    def pages() -> Iterator[list[SeriesEntry]]:
        time.sleep(0.1)
        raise StoreDownError("down")
        yield []

    series = listing(pages)
    series.entries()
    assert series._refresher.pause == 0.0


def test_work_may_ask_for_itself() -> None:
    def work() -> float:
        refresher.ask(patience=None)
        refresher.now()
        worked.append(1)
        return 0.0

    worked: list[int] = []
    refresher = Refresher(work, 0.0, "test")
    refresher.now()
    assert worked == [1]


class Headers:
    """The server's headers of segmentations, and which were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def state(self, series: str) -> str:
        return ""

    def headers(self, study: str, series: str, attributes: Iterable[str]) -> list[Any]:
        from pydicom.dataset import Dataset

        self.asked.append(series)
        if series.startswith("9"):
            raise StoreError("damaged")
        header, reference = Dataset(), Dataset()
        reference.SeriesInstanceUID = series.replace("2.", "3.", 1)
        header.SOPInstanceUID = f"4.{series}"
        header.ReferencedSeriesSequence = [reference]
        header.ContentDate, header.ContentTime = "20260101", "120000"
        return [header]


def test_headers_of_segmentations_are_read_once_and_not_again_after_a_restart(tmp_path: Path) -> None:
    entries = [SeriesEntry("1", f"2.{number}", "SEG", "", "", 1) for number in range(30)]
    images: Mapping[str, Any] = {f"3.{number}": None for number in range(30)}

    def opened() -> tuple[Headers, SegIndex]:
        web = Headers()
        times = ArrivalTimes(tmp_path / "times.json")
        return web, SegIndex(web, times, lambda: images, tmp_path / "headers.json")  # type: ignore[arg-type]

    damaged = SeriesEntry("1", "9", "SEG", "", "", 1)
    web, index = opened()
    newest = index.newest([*entries, damaged])
    assert len(newest) == 30
    assert len(web.asked) == 31
    index.newest([*entries, damaged])
    assert len(web.asked) == 31
    web, again = opened()
    assert again.newest([*entries[1:], damaged]) == {name: newest[name] for name in newest if name != "3.0"}
    assert web.asked == ["9"]  # an error of the moment is no property of a segmentation
    (tmp_path / "headers.json").write_text("{damaged")
    web, last = opened()
    assert last.newest(entries) == newest
    assert len(web.asked) == 30


@pytest.fixture
def store(qido: Qido, tmp_path: Path) -> DicomStore:
    return DicomStore(DICOMwebClient(qido.url), tmp_path / "cache")


def test_the_next_case_of_thousands_asks_the_server_for_one_listing(qido: Qido, store: DicomStore) -> None:
    images = qido.add(2500)
    store.list_soon()
    assert len(store._entries(complete=True)) == 2500
    qido.queries.clear()
    for _ in range(3):
        assert store.get_unlabeled_images() == sorted(images)
        assert store.status()["total"] == 2500
        assert all(store.get_image_info(image)["PatientID"] for image in images)
    pages = [query for query in qido.queries if "Modality" not in query]
    assert len(pages) <= 2 * 5  # a slow machine may need so long for the questions that it lists them again


def test_a_label_that_a_listing_has_missed_stays(qido: Qido, store: DicomStore, tmp_path: Path) -> None:
    """Pages shift while others store and delete series."""
    [image], [seg] = qido.add(1), qido.add(1, "SEG")
    adopted(store, image, seg)
    heard: list[str] = []
    store.on_label, store.on_removed = (lambda image, label: None), heard.append
    qido.give = lambda found, limit, offset: [] if limit < 10**9 else found  # listings are empty, `find` is not
    assert store.sync(force=True) == []
    assert store.get_label_uri(image, FINAL)
    qido.series.pop()
    assert store.sync(force=True) == [image]
    assert not store.get_label_uri(image, FINAL)
    assert heard == [image]


def test_before_a_submission_only_the_study_is_asked_on_a_server_with_many_labels(
    qido: Qido, store: DicomStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    [image], [seg] = qido.add(1), qido.add(1, "SEG")
    adopted(store, image, seg)
    store.list_images()
    monkeypatch.setattr("lib.dicom.refresher.PATIENCE_SECONDS", -1.0)  # no check of all labels is quick
    qido.series.pop()
    qido.queries.clear()
    store.sync_image(image)
    pages = [query for query in qido.queries if query.get("StudyInstanceUID") == "1.1.0"]
    assert len(pages) == 2  # the series of the study, and that there are no more
    assert not [query for query in qido.queries if "Modality" in query]  # as for a check of all labels
    assert not store.get_label_uri(image, FINAL)


def adopted(store: DicomStore, image: str, seg: str) -> None:
    """Let a segmentation be the label of an image whose volume is there."""
    from monailabel.datastore.local import DataModel, ImageLabelModel

    folder = Path(store._datastore.image_path())
    (folder / f"{image}.nii.gz").write_bytes(b"volume")
    label = folder / "labels" / "final" / f"{image}.nii.gz"
    label.write_bytes(b"label")
    info = {"SeriesInstanceUID": seg, "SOPInstanceUID": "1.3", "label_names": {"cyst": 1}}
    labels = {"final": DataModel(ext=".nii.gz", info=info)}
    store._datastore.objects[image] = ImageLabelModel(image=DataModel(ext=".nii.gz"), labels=labels)
    store._update_datastore_file()
