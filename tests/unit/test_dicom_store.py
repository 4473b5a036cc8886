# SPDX-License-Identifier: Apache-2.0
"""A datastore whose server is in memory: series that grow, volumes that go, processes beside the server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient

from lib.dicom import volume_file
from lib.dicom.datastore import DicomStore
from lib.dicom.web import SeriesEntry
from tests.unit import dicom_files
from tests.unit.dicom_arrivals import MemoryStore

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SHAPE = (12, 10, 20)


def opened(memory: MemoryStore, folder: Path, **options: Any) -> DicomStore:
    """A datastore of the series of a store in memory."""
    store = DicomStore(DICOMwebClient("http://127.0.0.1:9/dicom-web"), folder, **options)

    def pages(**filters: str) -> Iterator[list[SeriesEntry]]:
        yield [] if filters.get("Modality") == "SEG" else [memory.entry]

    for name, answer in {
        "pages": pages,
        "find": lambda series: memory.entry if series == memory.entry.series else None,
        "header_items": memory.header_items,
        "fetch": memory.fetch,
        "instance_file": memory.instance_file,
    }.items():
        setattr(store.web, name, answer)
    return store


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something comes true."""
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore(dicom_files.volume("CT", SHAPE))


@pytest.fixture
def image(memory: MemoryStore) -> str:
    return memory.entry.series


def test_a_series_that_is_asked_for_while_its_file_is_finished_arrives_once(
    memory: MemoryStore, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(memory, tmp_path)
    finishing, go_on = threading.Event(), threading.Event()

    def sync(descriptor: int) -> None:
        if ".nii." in os.readlink(f"/proc/self/fd/{descriptor}"):
            finishing.set()
            go_on.wait(20)

    monkeypatch.setattr(volume_file.os, "fsync", sync)
    with ThreadPoolExecutor(1) as threads:
        path = threads.submit(store.get_image_uri, image)
        assert finishing.wait(20)
        first = store.volume(image)
        assert first.is_complete and not first.path.exists()
        assert store.volume(image) is first
        go_on.set()
        assert Path(path.result(20)).is_file()
    assert len(memory.asked) == SHAPE[2]
    first.path.unlink()
    assert Path(store.get_image_uri(image)).is_file()  # it arrives again, as it is gone
    assert len(memory.asked) == 2 * SHAPE[2] and store.volume(image) is not first


def test_a_file_that_somebody_removed_before_it_was_finished_arrives_again(
    memory: MemoryStore, image: str, tmp_path: Path
) -> None:
    store = opened(memory, tmp_path)
    store._series_cache.volume(image).wait([0])
    [partial] = tmp_path.glob(".*.part")
    partial.unlink()
    with pytest.raises(volume_file.VolumeStorageError):
        store.get_image_uri(image)
    assert Path(store.get_image_uri(image)).is_file()
    assert not list(tmp_path.glob(".*.part"))


def test_a_volume_that_was_cut_off_arrives_again(memory: MemoryStore, image: str, tmp_path: Path) -> None:
    store = opened(memory, tmp_path)
    path = Path(store.get_image_uri(image))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert Path(store.get_image_uri(image)).read_bytes() == content
