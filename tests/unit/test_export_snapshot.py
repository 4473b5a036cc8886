# SPDX-License-Identifier: Apache-2.0
"""A folder of studies as it is at one moment, while a server writes labels and then what their values mean."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from threading import Thread

import pytest

from kprism_model.files import write_bytes
from lib.dataset_export import snapshot as module
from lib.dataset_export.snapshot import snapshot
from lib.errors import RequestError

OLD, NEW = b"a label whose value 1 is the liver", b"a label whose value 1 is the spleen"


def index(studies: Path, name: str) -> None:
    """Write the index, which names the value 1 of the label of `a`."""
    label = {"info": {"label_names": {name: 1}}, "ext": ".nii.gz"}
    entry = {"image": {"info": {}, "ext": ".nii.gz"}, "labels": {"final": label}}
    content = {"name": "x", "description": "", "objects": {"a": entry}}
    write_bytes(studies / "datastore_v2.json", json.dumps(content).encode())


def site(folder: Path) -> Path:
    studies = folder / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    (studies / "a.nii.gz").write_bytes(b"image")
    (studies / ".kprism").mkdir()
    label(studies, OLD, age=60)
    index(studies, "liver")
    return studies


def label(studies: Path, content: bytes, age: float = 0.0, name: str = "a.nii.gz") -> None:
    """Write a label as if some seconds ago."""
    path = studies / "labels" / "final" / name
    write_bytes(path, content)
    os.utime(path, (time.time() - age,) * 2)


def shown(folder: Path) -> tuple[bytes, str]:
    """The label of a snapshot and the name of its value."""
    label = json.loads((folder / "datastore_v2.json").read_text())["objects"]["a"]["labels"]["final"]
    return (folder / "labels" / "final" / "a.nii.gz").read_bytes(), next(iter(label["info"]["label_names"]))


def test_images_are_links_and_labels_are_copies(tmp_path: Path) -> None:
    studies = site(tmp_path)
    assert snapshot(studies, tmp_path / "shown") == []
    assert shown(tmp_path / "shown") == (OLD, "liver")
    assert sorted(path.name for path in (tmp_path / "shown").iterdir()) == ["a.nii.gz", "datastore_v2.json", "labels"]
    assert (tmp_path / "shown" / "a.nii.gz").resolve() == studies / "a.nii.gz"
    label(studies, NEW)
    index(studies, "spleen")
    assert shown(tmp_path / "shown") == (OLD, "liver")


def test_a_label_is_not_shown_with_the_names_of_the_one_before(tmp_path: Path) -> None:
    studies = site(tmp_path)
    label(studies, NEW)

    def finish() -> None:
        time.sleep(0.2)
        index(studies, "spleen")

    thread = Thread(target=finish)
    thread.start()
    assert snapshot(studies, tmp_path / "shown") == []
    thread.join()
    assert shown(tmp_path / "shown") == (NEW, "spleen")


def test_a_label_that_changes_all_the_time_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_SECONDS", 3600.0)  # so that a label of this minute is one of just now
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    studies = site(tmp_path)
    label(studies, OLD, age=7200, name="b.nii.gz")
    label(studies, OLD, age=60)
    assert snapshot(studies, tmp_path / "shown") == ["a.nii.gz"]
    assert [path.name for path in (tmp_path / "shown" / "labels" / "final").iterdir()] == ["b.nii.gz"]


def test_labels_that_come_and_go_and_folders_that_nobody_served(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    (studies / "a.nii.gz").write_bytes(b"image")
    assert snapshot(studies, tmp_path / "first") == []
    assert not (studies / "labels").exists()
    (studies / "datastore_v2.json").write_text("{")
    with pytest.raises(RequestError, match=r"datastore_v2\.json is not valid JSON"):
        snapshot(studies, tmp_path / "second")
    (studies / "datastore_v2.json").write_text("[]")
    with pytest.raises(RequestError, match="holds list; expected the index"):
        snapshot(studies, tmp_path / "third")
