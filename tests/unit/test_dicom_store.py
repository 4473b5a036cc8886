# SPDX-License-Identifier: Apache-2.0
"""A datastore whose server is in memory: series that grow, volumes that go, processes beside the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client import DICOMwebClient
from monailabel.datastore.local import DataModel
from pydicom.dataset import Dataset

from lib.api.ohif import cases
from lib.dicom import volume_file
from lib.dicom.datastore import FINAL, DicomStore
from lib.dicom.web import DicomWeb, SeriesEntry, StoreDownError, StoreError
from lib.image_files import opened_path
from lib.learning.strategies import FirstCase
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
        if ".nii." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
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


def test_a_listing_that_is_older_than_the_series_does_not_throw_it_away(
    memory: MemoryStore, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(memory, tmp_path)
    old = [replace(memory.entry, instances=SHAPE[2] - 4)]
    monkeypatch.setattr(store.web, "pages", lambda **filters: iter([old]))
    path = Path(store.get_image_uri(image))
    for _ in range(3):
        assert store.open_series(image).grid == SHAPE and path.is_file()
    assert memory.headers_asked == 1
    monkeypatch.setattr(store.web, "find", down)
    assert store.open_series(image).grid == SHAPE and path.is_file()
    monkeypatch.undo()
    memory.instances = memory.instances[1:]
    store._entries(refresh=True)
    assert store.open_series(image).grid == (*SHAPE[:2], SHAPE[2] - 1) and not path.exists()


def down(series: str) -> SeriesEntry:
    raise StoreDownError("the server does not answer; nothing was changed")


def test_a_process_beside_the_server_forgets_nothing_and_writes_no_index(
    memory: MemoryStore, image: str, tmp_path: Path
) -> None:
    server = opened(memory, tmp_path)
    path = Path(server.get_image_uri(image))
    label = labelled(server, image)
    index = tmp_path / "datastore_v2.json"
    before = index.read_bytes()
    memory.instances = memory.instances[:-1]
    beside = opened(memory, tmp_path, auto_sync=False)
    assert beside.open_series(image).grid == SHAPE
    assert not beside.get_label_uri(image, FINAL)  # it is about to change
    assert path.is_file() and label.is_file() and index.read_bytes() == before
    other = MemoryStore(dicom_files.volume("CT", SHAPE, "other"))
    assert opened(other, tmp_path, auto_sync=False).open_series(other.entry.series).grid == SHAPE
    assert index.read_bytes() == before


def labelled(store: DicomStore, image: str) -> Path:
    """Let a file be the label of a series."""
    label = Path(store._datastore.label_path(FINAL)) / f"{image}.nii.gz"
    label.write_bytes(b"label")
    store._datastore.objects[image].labels[FINAL] = DataModel(ext=".nii.gz", info={})
    store._update_datastore_file()
    return label


def test_a_series_stays_while_its_volume_comes_and_goes(
    memory: MemoryStore, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(memory, tmp_path)
    path = Path(store.get_image_uri(image))
    looks: list[str] = []
    monkeypatch.setattr(store, "refresh", lambda: looks.append("refresh"))
    for file in (path, tmp_path / "1.2.3.nii", tmp_path / f"{image}.nii.gz"):
        file.write_bytes(b"volume")
        store._on_change(str(file))
        file.unlink()
        store._on_change(str(file))
    assert looks == [] and image in store._datastore.objects
    label = labelled(store, image)
    label.unlink()
    store._on_change(str(label))
    assert set(looks) == {"refresh"}  # the folder is watched, too


def test_only_what_is_needed_is_fetched_of_a_series_that_is_not_worked_on(
    memory: MemoryStore, image: str, tmp_path: Path
) -> None:
    store = opened(memory, tmp_path)
    path = opened_path(store, image)
    volume = store.local_volume(path)
    assert volume is not None
    volume.wait([3])
    assert eventually(lambda: store._series_cache._pool.running == 0)
    assert len(memory.asked) == 1
    assert opened_path(store, image, begin=True) == path
    assert eventually(path.is_file)


def test_a_next_case_is_handed_out_by_its_headers_and_one_image(
    memory: MemoryStore, image: str, tmp_path: Path
) -> None:
    store = opened(memory, tmp_path)
    for _ in range(3):
        assert FirstCase()({}, store) == {"id": image}
    assert eventually(lambda: store._series_cache._pool.running == 0)
    assert memory.headers_asked == 1
    assert memory.asked == [str(memory.instances[SHAPE[2] // 2].SOPInstanceUID)]


def test_a_file_with_all_slices_is_not_fetched_before_a_next_case(tmp_path: Path) -> None:
    memory = MemoryStore(dicom_files.enhanced())
    store = opened(memory, tmp_path)
    assert FirstCase()({}, store) == {"id": memory.entry.series}
    assert (memory.headers_asked, memory.asked) == (1, [])


def truncated(instances: list[Dataset]) -> list[Dataset]:
    for instance in instances:
        instance.PixelData = instance.PixelData[:20]
    return instances


def without_size(instances: list[Dataset]) -> list[Dataset]:
    for instance in instances:
        del instance.Rows
    return instances


def without_columns(instances: list[Dataset]) -> list[Dataset]:
    for instance in instances:
        instance.Columns = 0
    return instances


@pytest.mark.parametrize("spoil", [truncated, without_size, without_columns])
def test_a_series_that_cannot_be_read_is_not_handed_out(
    spoil: Callable[[list[Dataset]], list[Dataset]], tmp_path: Path
) -> None:
    memory = MemoryStore(spoil(dicom_files.volume("CT", SHAPE)))
    store = opened(memory, tmp_path)
    assert FirstCase()({}, store) is None
    assert eventually(lambda: store.list_images() == [])
    [(name, reason)] = store.not_served()
    assert memory.entry.series in name
    assert reason


def test_a_series_that_nobody_asks_about_stops(
    memory: MemoryStore, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(memory, tmp_path)
    monkeypatch.setattr(cases, "store", lambda: store)
    memory.gate.clear()
    with monkeypatch.context() as patched:
        patched.setattr("lib.dicom.arrival.BACKGROUND_SECONDS", 0.2)
        assert cases.arrival(image)["total"] == SHAPE[2]
        time.sleep(0.3)
    memory.gate.set()
    assert eventually(lambda: store._series_cache._pool.running == 0)
    assert len(memory.asked) <= 4
    cases.arrival(image)
    assert eventually(store.volume(image).path.is_file)


def test_the_mode_is_told_of_images_that_cannot_be_fetched(
    memory: MemoryStore, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(memory, tmp_path)
    monkeypatch.setattr(cases, "store", lambda: store)
    frames = [frame.instance for frame in store.open_series(image).frames]
    memory.missing = {frames[9]}
    expected = {"arrived": SHAPE[2] - 1, "total": SHAPE[2], "failed": 1}
    assert eventually(lambda: cases.arrival(image) == expected)
    for _ in range(3):
        assert cases.arrival(image) == expected
    assert eventually(lambda: store._series_cache._pool.running == 0)
    assert memory.asked.count(frames[9]) == 1  # questions alone do not fetch it again
    memory.missing = set()
    store.volume(image).wait([9])
    assert cases.arrival(image) == {"arrived": SHAPE[2], "total": SHAPE[2], "failed": 0}


def test_an_answer_that_is_no_multipart_message_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    client = DICOMwebClient("http://127.0.0.1:9/dicom-web")
    web = DicomWeb(client)
    answer = requests.Response()
    answer.status_code, answer.headers["content-type"], answer._content = 200, "text/html", b"<p>Sign in</p>"
    monkeypatch.setattr(client, "_http_get", lambda address, **options: answer)
    with pytest.raises(StoreError, match=r"sent no DICOM file for image 1\.2\.3: Unexpected media type"):
        web.instance_file("1", "1.2", "1.2.3")
