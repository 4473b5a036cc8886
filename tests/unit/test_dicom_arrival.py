# SPDX-License-Identifier: Apache-2.0
"""Series that arrive plane by plane: the order, those who wait, servers and disks that fail, threads that end."""

from __future__ import annotations

import copy
import errno
import os
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset

from lib.dicom import volume_file
from lib.dicom.arrival import ClosedError
from lib.dicom.fetch_pool import FetchPool
from lib.dicom.pixels import decode
from lib.dicom.plane_queue import PlaneQueue, range_planes
from lib.dicom.series_volume import SeriesVolume
from lib.dicom.volume_file import VolumeStorageError, remove_abandoned
from lib.dicom.web import StoreDownError, StoreError
from lib.errors import OutOfMemoryError, RequestError
from tests.unit import dicom_files
from tests.unit.dicom_arrivals import MemoryStore, arriving

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SHAPE = (12, 10, 40)


def taken(queue: PlaneQueue) -> list[int]:
    found = []
    while (instance := queue.take()) is not None:
        found.append(instance)
    return found


def ended(pool: FetchPool) -> bool:
    """Whether the threads end."""
    deadline = time.monotonic() + 20
    while pool.running and time.monotonic() < deadline:
        time.sleep(0.01)
    return pool.running == 0


def answer(wait: Callable[[], None]) -> Future[None]:
    """What a call comes to; one that never returns hinders no other test."""
    future: Future[None] = Future()

    def call() -> None:
        try:
            future.set_result(wait())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def test_planes_come_in_the_order_of_their_urgency() -> None:
    queue = PlaneQueue(range(40))
    queue.look_at(10)
    queue.want([30, 31])
    queue.want([5, 31])
    order = taken(queue)
    assert order[:3] == [5, 31, 30]
    assert sorted(order) == list(range(40))
    scaled = [plane for plane in range_planes(40) if plane not in (5, 30, 31)]
    assert order[3 : 3 + len(scaled)] == scaled
    distances = [abs(plane - 10) for plane in order[3 + len(scaled) :]]
    assert distances == sorted(distances)


def test_the_planes_for_the_range_are_those_of_each_volume() -> None:
    assert range_planes(400) == [int((place + 0.5) * 25) for place in range(16)]
    assert range_planes(3) == [0, 1, 2]
    order = taken(PlaneQueue(range(100), volumes=2))
    assert order[:32] == [start + plane for start in (0, 50) for plane in range_planes(50)]


def test_an_instance_of_many_frames_is_taken_once() -> None:
    queue = PlaneQueue([0, 0, 0, 1, 1])
    queue.want([1, 2, 4])
    assert taken(queue) == [0, 1]
    queue.put_back(1)
    assert queue.take(urgent=True) is None
    assert taken(queue) == [1]


def test_what_somebody_waits_for_is_fetched_first_and_nothing_twice(tmp_path: Path) -> None:
    store, pool = MemoryStore(dicom_files.volume("CT", SHAPE)), FetchPool(1)
    volume = arriving(store, tmp_path, pool)
    assert volume.progress == (0, 40) and store.asked == []
    volume.wait([33, 7])
    frames = [frame.instance for frame in volume.series.frames]
    assert store.asked[:2] == [frames[33], frames[7]]
    assert not volume.path.exists()
    image = volume.image("the series")
    assert image.array[:, :, 33].any() and not image.array[:, :, 20].any()
    assert volume.complete().is_file() and volume.progress == (40, 40)
    assert sorted(store.asked) == sorted(frames)
    assert ended(pool) and names(tmp_path) == [volume.path.name]
    np.testing.assert_array_equal(image.array, volume.image("again").array)


def test_a_series_that_is_not_looked_at_any_more_stops(tmp_path: Path) -> None:
    store, pool = MemoryStore(dicom_files.volume("CT", SHAPE)), FetchPool(1)
    store.gate.clear()
    volume = arriving(store, tmp_path, pool)
    volume.begin()
    volume.stop()
    store.gate.set()
    assert ended(pool) and len(store.asked) <= 1
    volume.wait([3])
    assert ended(pool) and len(store.asked) <= 2


def test_several_series_share_the_threads(tmp_path: Path) -> None:
    pool = FetchPool(2)
    stores = [MemoryStore(dicom_files.volume("CT", SHAPE, name)) for name in ("one", "two", "three")]
    volumes = [arriving(store, tmp_path, pool) for store in stores]
    for store, volume in zip(stores, volumes, strict=True):
        store.gate.clear()
        volume.begin()
    assert pool.running <= 2
    for store in stores[:2]:
        store.gate.set()
    volumes[1].wait([4])
    assert abs(len(stores[0].asked) - len(stores[1].asked)) < SHAPE[2]  # both went on
    stores[2].gate.set()
    for volume in volumes:
        volume.complete()
    assert ended(pool)


def test_turns_are_fair(tmp_path: Path) -> None:
    pool, turns = FetchPool(1), list[str]()

    class Source:
        def __init__(self, name: str) -> None:
            self.name, self.left = name, 5

        def take(self, *, urgent: bool) -> Callable[[], None] | None:
            if urgent or not self.left:
                return None
            self.left -= 1
            return lambda: turns.append(self.name)

    started = threading.Event()
    first = Source("a")
    original = first.take
    first.take = lambda *, urgent: (started.wait(20), original(urgent=urgent))[1]  # type: ignore[method-assign]
    pool.serve(first)
    threading.Thread(target=pool.serve, args=(Source("b"),)).start()
    started.set()
    assert ended(pool)
    while len(turns) < 10:
        time.sleep(0.01)
    assert sorted(turns) == ["a"] * 5 + ["b"] * 5


def test_a_store_that_ends_half_way_is_said_and_the_next_request_goes_on(tmp_path: Path) -> None:
    store, pool = MemoryStore(dicom_files.volume("CT", SHAPE), ends_after=15), FetchPool()
    volume = arriving(store, tmp_path, pool)
    with pytest.raises(StoreDownError, match="does not answer; nothing was changed"):
        volume.complete()
    assert ended(pool) and not volume.path.exists()
    arrived, _ = volume.progress
    assert 0 < arrived <= 15
    with pytest.raises(StoreDownError):
        volume.complete()
    store.ends_after = 1 << 30
    volume.complete()
    assert len(store.asked) == 40  # none that had arrived was asked for again
    assert ended(pool) and names(tmp_path) == [volume.path.name]


def test_all_who_wait_are_told(tmp_path: Path) -> None:
    store = MemoryStore(dicom_files.volume("CT", SHAPE), ends_after=3)
    store.gate.clear()
    volume = arriving(store, tmp_path)
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(volume.wait, [plane]) for plane in range(8)]
        store.gate.set()
        errors = [waiter.exception(timeout=20) for waiter in waiting]
    assert {type(error) for error in errors if error is not None} == {StoreDownError}
    assert sum(error is None for error in errors) <= 3


def test_a_missing_image_concerns_those_who_need_it(tmp_path: Path) -> None:
    store = MemoryStore(dicom_files.volume("CT", SHAPE))
    volume = arriving(store, tmp_path)
    frames = [frame.instance for frame in volume.series.frames]
    store.missing = {frames[9]}
    volume.wait([8, 10])
    for ask in (volume.complete, lambda: volume.wait([9])):
        with pytest.raises(StoreError, match=f"404 for {frames[9]}"):
            ask()
    volume.wait([*range(9), *range(10, 40)])
    assert volume.progress == (39, 40) and not volume.path.exists()
    store.missing = set()
    assert volume.complete().is_file()


def test_pixels_of_another_size_are_said(tmp_path: Path) -> None:
    instances = dicom_files.volume("CT", SHAPE)
    store = MemoryStore(instances)
    volume = arriving(store, tmp_path)
    other = dicom_files.volume("CT", (7, 5, 1))[0]
    wrong = volume.series.frames[4].instance
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = wrong
    store.files[wrong] = MemoryStore([other]).files[wrong]
    with pytest.raises(
        RequestError, match=rf"image {wrong} has other pixels than its header says: 7 x 5 x 1, expected"
    ):
        volume.complete()
    store.files[wrong] = b"no DICOM"
    with pytest.raises(RequestError, match=f"image {wrong} is not a readable DICOM file"):
        volume.complete()
    volume.wait([3, 5])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (zlib.error("Error -3"), RequestError, "image {} cannot be read: error: Error -3"),
        (ValueError("no boundary"), RequestError, "image {} cannot be read: ValueError: no boundary"),
        (MemoryError(), OutOfMemoryError, "too little memory to read image {}"),
    ],
)
def test_any_failure_of_an_image_names_it(
    error: Exception, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = arriving(MemoryStore(dicom_files.volume("CT", SHAPE)), tmp_path)
    image = volume.series.frames[4].instance
    unreadable: list[RequestError] = []
    assert volume.arrival is not None
    volume.arrival.on_unreadable = unreadable.append

    def decoded(content: bytes, instance: str) -> Any:
        if instance == image:
            raise error
        return decode(content, instance)

    monkeypatch.setattr("lib.dicom.arrival.decode", decoded)
    with pytest.raises(kind, match=message.format(image)):
        volume.complete()
    volume.wait([*range(4), *range(5, 40)])
    assert len(unreadable) == (kind is RequestError)
    monkeypatch.undo()
    assert volume.complete().is_file()


@pytest.mark.parametrize("listener", ["on_unreadable", "on_complete", "on_too_wide"])
def test_those_who_wait_are_told_whatever_a_listener_does(listener: str, tmp_path: Path) -> None:
    instances = dicom_files.volume("CT", SHAPE)
    store, pool = MemoryStore(instances), FetchPool(1)
    volume = arriving(store, tmp_path, pool)

    def fail(*arguments: Any) -> bool:
        raise KeyError("a listener")

    assert volume.arrival is not None
    setattr(volume.arrival, listener, fail)
    if listener == "on_complete":
        assert volume.complete().is_file()
    else:
        image = volume.series.frames[4].instance
        if listener == "on_unreadable":
            store.files[image] = b"no DICOM"
        else:
            volume.arrival._kind = volume.kind._replace(dtype=np.dtype(np.uint8))
        with pytest.raises(RequestError, match=f"image {image}"):
            answer(lambda: volume.wait([4])).result(timeout=20)
    assert ended(pool)


def test_a_job_that_fails_ends_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool, done = FetchPool(1), threading.Event()

    def fail() -> None:
        raise ValueError("a job")

    class Source:
        def __init__(self, *jobs: Callable[[], None]) -> None:
            self.jobs = list(jobs)

        def take(self, *, urgent: bool) -> Callable[[], None] | None:
            return self.jobs.pop(0) if self.jobs and not urgent else None

    class Broken:
        def take(self, *, urgent: bool) -> Callable[[], None] | None:
            raise KeyError("a source")

    pool.serve(Source(fail, fail, done.set))
    assert done.wait(20) and ended(pool)
    pool.serve(Broken())
    assert ended(pool)
    done.clear()
    pool.serve(Source(done.set))
    assert done.wait(20) and ended(pool)
    assert "ValueError: a job" in caplog.text and "KeyError: 'a source'" in caplog.text


def test_threads_that_do_not_start_are_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool = FetchPool()
    volume = arriving(MemoryStore(dicom_files.volume("CT", SHAPE)), tmp_path, pool)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda thread: full())
        with pytest.raises(OSError, match="No space"):
            volume.begin()
    assert pool.running == 0
    assert volume.complete().is_file()


def moved(instance: Dataset, number: int) -> Dataset:
    """The image so many millimetres away."""
    image = FileDataset("", {}, file_meta=copy.copy(instance.file_meta), preamble=b"\0" * 128)
    image.update(instance)
    image.is_little_endian, image.is_implicit_VR = True, False
    for name in ("SOPInstanceUID", "ImagePositionPatient"):
        del image[name]
    normal = np.cross(instance.ImageOrientationPatient[:3], instance.ImageOrientationPatient[3:])
    image.ImagePositionPatient = [f"{x:.8g}" for x in normal * number]
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    return image


def full(*arguments: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "replace"])
def test_a_full_disk_is_said(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, pool = MemoryStore(dicom_files.volume("CT", SHAPE)), FetchPool()
    volume = arriving(store, tmp_path, pool)
    with monkeypatch.context() as patched:
        patched.setattr(volume_file.os, call, full)
        with pytest.raises(
            VolumeStorageError, match=r"\(12 x 10 x 40 voxels, 0 MiB\) is not stored: the disk .* is full"
        ):
            volume.complete()
        assert ended(pool) and not volume.path.exists()
        if call != "replace":
            assert names(tmp_path) == []
    expected = arriving(MemoryStore(store.instances), tmp_path / "other").complete()
    assert volume.complete().read_bytes() == expected.read_bytes()


def test_a_closed_series_tells_those_who_wait_and_leaves_nothing(tmp_path: Path) -> None:
    store, pool = MemoryStore(dicom_files.volume("CT", SHAPE)), FetchPool()
    volume = arriving(store, tmp_path, pool)
    volume.wait([0])
    store.gate.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(volume.complete)
        volume.close()
        with pytest.raises(ClosedError, match="has changed; open it again"):
            waiting.result(timeout=20)
        store.gate.set()
    assert ended(pool) and names(tmp_path) == []
    with pytest.raises(ClosedError):
        volume.image("the series")


def test_a_long_series_and_a_tiny_one(tmp_path: Path) -> None:
    image = dicom_files.volume("CT", (3, 2, 2))[0]
    long = [moved(image, number) for number in range(2000)]
    for instances, shape in ((dicom_files.volume("CT", (1, 1, 1)), (1, 1, 1)), (long, (3, 2, 2000))):
        volume = arriving(MemoryStore(instances), tmp_path / str(len(instances)))
        volume.complete()
        assert volume.image("the series").array.shape == shape


def test_only_partial_volumes_of_dead_processes_are_removed(tmp_path: Path) -> None:
    store = MemoryStore(dicom_files.volume("CT", SHAPE))
    volume = arriving(store, tmp_path)
    volume.wait([0])
    abandoned = tmp_path / ".1.2.3.nii.0123.part"
    abandoned.write_bytes(b"half")
    remove_abandoned(tmp_path)
    assert not abandoned.exists()
    assert volume.complete().is_file()


def test_a_complete_volume_is_known_at_the_next_start_and_a_damaged_one_arrives_again(tmp_path: Path) -> None:
    store = MemoryStore(dicom_files.volume("CT", SHAPE))
    first = arriving(store, tmp_path)
    digest, content = first.digest, first.complete().read_bytes()
    again = arriving(store, tmp_path)
    assert again.is_complete and again.arrival is None and again.digest == digest
    assert again.image("the series").arrival is None
    first.path.write_bytes(content[:-5])
    damaged = arriving(store, tmp_path)
    assert not damaged.is_complete
    assert damaged.complete().read_bytes() == content
    again.path.write_bytes(content[:-5])
    with pytest.raises(VolumeStorageError, match="cannot be read"):
        again.image("the series")


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    def digest(store: MemoryStore, folder: str, **options: Any) -> str:
        volume: SeriesVolume = arriving(store, tmp_path / folder, **options)
        return volume.digest

    instances = dicom_files.volume("CT", SHAPE)
    first = digest(MemoryStore(instances), "a")
    assert digest(MemoryStore(instances[::-1]), "b") == first
    assert digest(MemoryStore(instances[1:]), "c") != first
    assert digest(MemoryStore(dicom_files.volume("CT", SHAPE, "other")), "d") != first
