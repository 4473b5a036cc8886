# SPDX-License-Identifier: Apache-2.0
"""Segmentations that this server stored itself are known without reading them from the DICOMweb server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from lib.dicom.arrival_times import ArrivalTimes
from lib.dicom.seg_index import SegIndex
from lib.dicom.seg_writer import write_seg
from lib.dicom.web import DicomWeb, SeriesEntry
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
