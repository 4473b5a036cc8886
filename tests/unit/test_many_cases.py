# SPDX-License-Identifier: Apache-2.0
"""A folder of many images: how often files are looked at is counted; what others do in the folder is noticed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib import folder_contents
from lib.datastore import GuardedDatastore
from lib.folder_watch import FolderWatch
from lib.labelled_cases import known_names, labelled_case, labelled_cases
from lib.learning.strategies import RandomCase

EXTENSIONS = ("*.png", "*.nii.gz")


def opened(folder: Path, *, auto_reload: bool = False) -> GuardedDatastore:
    return GuardedDatastore(str(folder), extensions=EXTENSIONS, auto_reload=auto_reload)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images, ten of them with a label that nobody has named."""
    (tmp_path / "labels" / "final").mkdir(parents=True)
    for number in range(20):
        (tmp_path / f"c{number:02}.png").write_bytes(b"image")
    for number in range(0, 20, 2):
        (tmp_path / "labels" / "final" / f"c{number:02}.png").write_bytes(b"label")
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"1": "liver"}}))
    return tmp_path


def eventually(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Counted:
    """How often a function was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> None:
        self.calls = 0
        function = getattr(target, name)

        def count(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            return function(*arguments, **named)

        monkeypatch.setattr(target, name, count)


def test_a_look_at_the_folder_lists_each_part_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(folder)
    assert (len(store.list_images()), len(store.get_labeled_images())) == (20, 10)
    listings = Counted(monkeypatch, folder_contents.os, "scandir")
    questions = Counted(monkeypatch, os, "stat")
    store.refresh()
    assert listings.calls == 4  # images, the folder of labels, labels/final, labels/original
    assert questions.calls < 20  # of the index, not of every file


def test_what_changes_in_the_folder_is_found(folder: Path) -> None:
    store = opened(folder)
    store.update_image_info("c01", {"patient": "anna"})
    (folder / "c00.png").unlink()
    (folder / "labels" / "final" / "c02.png").unlink()
    (folder / "new.nii.gz").write_bytes(b"image")
    (folder / "labels" / "draft").mkdir()
    (folder / "labels" / "draft" / "c01.nii.gz").write_bytes(b"label")
    (folder / "labels" / "final" / "nobody.png").write_bytes(b"label without an image")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    store.refresh()
    for known in (store, opened(folder)):
        assert known.list_images() == [*(f"c{number:02}" for number in range(1, 20)), "new"]
        assert sorted(known.get_labeled_images()) == [f"c{number:02}" for number in range(4, 20, 2)]
        assert known.get_labels_by_image_id("c01") == {"draft": "c01"}
        assert known.get_image_info("c01")["patient"] == "anna"
        assert known.get_image_info("new")["name"] == "new.nii.gz"


def test_images_in_subfolders_of_an_index_stay(folder: Path) -> None:
    """MONAI Label finds no files in subfolders, but reads an index that names them."""
    index = json.loads((opened(folder), (folder / "datastore_v2.json").read_text())[1])
    (folder / "more").mkdir()
    (folder / "more" / "x.png").write_bytes(b"image")
    index["objects"]["more/x"] = {"image": {"ext": ".png", "info": {}}, "labels": {}}
    (folder / "datastore_v2.json").write_text(json.dumps(index))
    assert "more/x" in opened(folder).list_images()


def test_the_index_is_what_monai_label_reads_and_writes(folder: Path) -> None:
    from monailabel.datastore.local import LocalDatastore

    store = opened(folder)
    store.save_label("c01", str(folder / "c00.png"), "final", {"names": ["Leber", "größe", '"'], "when": time})
    theirs = LocalDatastore(str(folder), extensions=EXTENSIONS)
    assert theirs.json() == json.loads(json.dumps(store.json(), default=str))
    theirs.update_image_info("c03", {"seen": True})
    store.refresh()
    assert store.get_image_info("c03")["seen"]


def test_own_labels_do_not_make_the_watcher_look_through_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(folder, auto_reload=True)
    looks = Counted(monkeypatch, folder_contents, "reconcile")
    monkeypatch.setattr("lib.datastore.reconcile", folder_contents.reconcile)
    for number in range(20):
        store.save_label(f"c{number:02}", str(folder / "c00.png"), "final", {"number": number})
        store.update_image_info(f"c{number:02}", {"number": number})
    shutil.copy(folder / "c00.png", folder / "by_hand.png")  # a later event than those of our own files
    assert eventually(lambda: "by_hand" in store.list_images())
    assert 1 <= looks.calls <= 2  # created; and perhaps written to


def test_what_others_do_in_the_folder_is_noticed(folder: Path) -> None:
    store = opened(folder, auto_reload=True)
    labels = folder / "labels" / "final"
    shutil.copy(labels / "c00.png", labels / "c01.png")
    assert eventually(lambda: "c01" in store.get_labeled_images())
    (labels / "c01.png").unlink()
    assert eventually(lambda: "c01" not in store.get_labeled_images())
    (labels / "c00.png").rename(labels / "c03.png")
    assert eventually(lambda: "c03" in store.get_labeled_images() and "c00" not in store.get_labeled_images())
    (folder / "c05.png").unlink()
    assert eventually(lambda: "c05" not in store.list_images())
    (folder / "labels" / "draft").mkdir()
    time.sleep(0.2)  # until the new folder is watched
    shutil.copy(labels / "c02.png", folder / "labels" / "draft" / "c07.png")
    assert eventually(lambda: "draft" in store.get_labels_by_image_id("c07"))
    opened(folder).update_image_info("c07", {"patient": "anna"})  # as another process does
    assert eventually(lambda: store.get_image_info("c07").get("patient") == "anna")


def test_where_the_system_does_not_tell_the_folder_is_polled(folder: Path) -> None:
    changed: set[str] = set()
    FolderWatch({str(folder): False, str(folder / "labels"): True}, changed.add, poll=True)
    (folder / ".kprism").mkdir()
    (folder / ".kprism" / "state.json").write_bytes(b"")
    label = folder / "labels" / "final" / "c01.png"

    def is_noticed() -> bool:
        label.write_bytes(os.urandom(8))
        return str(label) in changed

    assert eventually(is_noticed)
    assert not any(".kprism/" in path for path in changed)


@pytest.mark.parametrize("error", [OSError("no space left on device"), ValueError("damaged"), KeyError("objects")])
def test_an_error_does_not_end_the_watching(folder: Path, error: Exception) -> None:
    seen: list[str] = []

    def fail(path: str) -> None:
        seen.append(path)
        raise error

    FolderWatch({str(folder): False}, fail, poll=False)
    (folder / "x.png").write_bytes(b"image")
    assert eventually(lambda: str(folder / "x.png") in seen)
    (folder / "y.png").write_bytes(b"image")
    assert eventually(lambda: str(folder / "y.png") in seen)


def test_names_of_labels_are_read_without_a_question_for_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(folder)
    store.update_label_info("c02", "final", {"label_names": {"spleen": 1}})
    asked = Counted(monkeypatch, GuardedDatastore, "get_label_info")
    assert known_names(store) == ["liver", "spleen"]
    assert [case.image_id for case in labelled_cases(store)] == [f"c{number:02}" for number in range(0, 20, 2)]
    assert labelled_case(store, "c02").names == ["spleen"]
    assert labelled_case(store, "c01") is None
    assert asked.calls == 0


def test_information_that_was_handed_out_does_not_change(folder: Path) -> None:
    store = opened(folder)
    before = labelled_case(store, "c02")
    store.update_label_info("c02", "final", {"label_names": {"spleen": 1}})
    assert before.names == ["liver"]
    assert labelled_case(store, "c02").names == ["spleen"]


class Many:
    """The part of a datastore that strategies ask, with a count of the questions."""

    def __init__(self, assigned: set[str]) -> None:
        self.assigned, self.asked = assigned, 0

    def get_unlabeled_images(self, label_tag: object, labels: object) -> list[str]:
        return [str(number) for number in range(10_000)]

    def get_image_info(self, image: str) -> dict[str, Any]:
        self.asked += 1
        return {"strategy": {"random": {"ts": int(time.time())}}} if image in self.assigned else {}


def test_a_random_case_asks_about_a_few_images() -> None:
    store = Many({str(number) for number in range(5000)})
    drawn = {RandomCase()({}, store)["id"] for _ in range(20)}
    assert not drawn & store.assigned
    assert len(drawn) > 10
    assert store.asked < 20 * 20


def test_a_random_case_is_the_one_that_was_not_assigned_lately() -> None:
    store = Many({str(number) for number in range(10_000) if number != 7})
    assert RandomCase()({}, store) == {"id": "7"}


def test_a_system_without_a_watch_left_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_watch() -> Any:
        raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr("lib.folder_watch.Observer", no_watch)
    heard: list[str] = []
    FolderWatch({str(tmp_path): False}, heard.append, poll=False)
    (tmp_path / "new.png").write_bytes(b"picture")
    deadline = time.monotonic() + 30
    while not heard and time.monotonic() < deadline:
        time.sleep(0.05)
    assert heard and heard[0].endswith("new.png")


def test_the_watching_ends_with_the_datastore(tmp_path: Path) -> None:
    class Store:
        def changed(self, path: str) -> None:
            """Nothing to do."""

    before = set(threading.enumerate())
    store = Store()
    FolderWatch({str(tmp_path): False}, store.changed, poll=True)
    watching = set(threading.enumerate()) - before
    assert watching
    del store
    gc.collect()
    for thread in watching:
        thread.join(30)
        assert not thread.is_alive()
