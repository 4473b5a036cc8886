# SPDX-License-Identifier: Apache-2.0
"""Which segmentations are labels: what is read of them, how often, and those that are gone or cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from lib.dicom.arrival_times import ArrivalTimes
from lib.dicom.seg_index import SegIndex
from lib.dicom.seg_writer import write_seg
from lib.dicom.web import DicomWeb, SeriesEntry, StoreError
from tests.unit import dicom_files


class Client:
    """A DICOMweb client whose server holds one segmentation, and counts how often it is read."""

    base_url = "http://store"

    def __init__(self, segmentation: Dataset) -> None:
        self.reads = 0
        self._json = segmentation.to_json_dict()
        self._session = self

    def set_http_retry_params(self, retry: bool) -> None:
        """Nothing here is tried again."""

    def mount(self, scheme: str, adapter: Any) -> None:
        """There are no connections."""

    def retrieve_series_metadata(self, study: str, series: str) -> list[dict[str, Any]]:
        """The whole header."""
        self.reads += 1
        return [self._json]


def test_a_segmentation_that_was_added_is_what_the_server_would_say(tmp_path: Path) -> None:
    series = dicom_files.series_of(dicom_files.volume())
    segmentation = write_seg(np.ones(series.grid, np.uint8), {"liver": 1}, series, "K-Prism")
    client = Client(segmentation)
    arrivals = ArrivalTimes(tmp_path / "arrivals.json")
    uids = str(segmentation.StudyInstanceUID), str(segmentation.SeriesInstanceUID)
    entry = SeriesEntry(*uids, "SEG", "K-Prism", str(segmentation.PatientID), 1)
    web, images = DicomWeb(client), lambda: [series.uid]
    adding, reading = (SegIndex(web, arrivals, images, tmp_path / f"{name}.json") for name in ("one", "other"))
    adding.add(segmentation)
    added = adding.newest([entry])
    assert client.reads == 0
    assert added == reading.newest([entry])
    assert client.reads == 1
    assert list(added) == [series.uid]
    assert added[series.uid].instance == segmentation.SOPInstanceUID
    assert adding.newest([]) == {}  # deleted on the server
    assert adding.newest([entry]) == added
    assert client.reads == 2


class Web:
    """A server's headers of segmentations: series -> image and time, or the error of reading them."""

    def __init__(self, said: Mapping[str, tuple[str, str] | Exception]) -> None:
        self.said = dict(said)
        self.asked: list[str] = []

    def state(self, series: str) -> str:
        """Series never change."""
        return ""

    def headers(self, study: str, series: str, attributes: Iterable[str]) -> list[Dataset]:
        """The header of a series of one instance."""
        self.asked.append(series)
        said = self.said[series]
        if isinstance(said, Exception):
            raise said
        header, reference = Dataset(), Dataset()
        reference.SeriesInstanceUID, header.ContentDate = said
        header.SOPInstanceUID = f"9.{series}"
        header.ReferencedSeriesSequence = [reference]
        return [header]


def seg(series: str, study: str = "1") -> SeriesEntry:
    return SeriesEntry(study, series, "SEG", "", "", 1)


def index_of(web: Web, folder: Path, images: Iterable[str] = ("3.1", "3.2")) -> SegIndex:
    return SegIndex(web, ArrivalTimes(folder / "times.json"), lambda: set(images), folder / "kept.json")  # type: ignore[arg-type]


def test_what_was_read_is_kept_until_a_complete_listing_lacks_it(tmp_path: Path) -> None:
    said = {"2.1": ("3.1", "20260101"), "2.2": ("3.2", "20260101")}
    web = Web(said)
    index_of(web, tmp_path).newest([seg("2.1"), seg("2.2", "2")])
    assert web.asked == ["2.1", "2.2"]
    web = Web({**said, "2.3": ("3.1", "20260102")})
    index_of(web, tmp_path).newest_of("3.1", "1", [seg("2.1"), seg("2.3")])
    assert web.asked == ["2.3"]
    web = Web(said)
    index_of(web, tmp_path).newest([seg("2.1"), seg("2.2", "2")])
    assert web.asked == []
    index_of(web, tmp_path).newest([seg("2.2", "2")])
    index_of(web, tmp_path).newest([seg("2.1"), seg("2.2", "2")])
    assert web.asked == ["2.1"]  # it was gone meanwhile


def test_what_is_gone_from_the_study_of_an_image_is_not_its_label(tmp_path: Path) -> None:
    web = Web({"2.1": ("3.1", "20260101"), "2.2": ("3.1", "20260102"), "2.3": ("3.1", "20250101")})
    index = index_of(web, tmp_path)
    assert index.newest([seg("2.1"), seg("2.2"), seg("2.3", "2")])["3.1"].entry == seg("2.2")
    newest = [index.newest_of("3.1", "1", there) for there in ([seg("2.1"), seg("2.2")], [seg("2.1")], [])]
    assert [stored and stored.entry.series for stored in newest] == ["2.2", "2.1", "2.3"]  # the last in another study


def test_the_label_of_one_image_needs_no_listing_of_all(tmp_path: Path) -> None:
    def images() -> set[str]:
        raise AssertionError("the whole server was listed")

    web = Web({"2.1": ("3.1", "20260101")})
    index = SegIndex(web, ArrivalTimes(tmp_path / "times.json"), images, tmp_path / "kept.json")  # type: ignore[arg-type]
    assert index.newest_of("3.1", "1", [seg("2.1")]) is not None
    assert index.newest_of("3.2", "1", [seg("2.1")]) is None


@pytest.mark.parametrize("error", [TypeError("odd"), IndexError(), RuntimeError("odd"), StoreError("refused")])
def test_a_segmentation_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Web({"2.1": error, "2.2": ("3.2", "20260101")})
    index = index_of(web, tmp_path)
    for _ in range(2):
        assert set(index.newest([seg("2.1"), seg("2.2")])) == {"3.2"}
    [unusable] = index.unusable()
    assert unusable.entry == seg("2.1") and unusable.reason == f"cannot be read: {str(error) or type(error).__name__}"
    assert web.asked == ["2.1", "2.2"]
    monkeypatch.setattr("time.monotonic", lambda: 1e9)  # long afterwards
    web.said["2.1"] = ("3.1", "20260101")
    passing = isinstance(error, StoreError)
    assert set(index.newest([seg("2.1"), seg("2.2")])) == ({"3.1", "3.2"} if passing else {"3.2"})
    assert len(index.unusable()) == (0 if passing else 1)
