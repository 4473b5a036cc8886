# SPDX-License-Identifier: Apache-2.0
"""Requests that name an image beside another, or only by its file, do not pass a work list; lists by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests

from benchmarks.live_server import LiveServer

NAMES = ("a", "scan #3", "Mu\u0308ller", "closed", "also closed")
LIST = "\ufeffa\r\n\r\na\r\n scan #3 \r\nM\u00fcller.nii.gz\r\n" + "".join(f"other {k}\r\n" for k in range(10_000))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("limits")
    rng = np.random.default_rng(0)
    (folder / "studies").mkdir()
    for name in NAMES:
        voxels = rng.normal(100, 20, (24, 20, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "studies" / f"{name}.nii.gz")
    (folder / "list.txt").write_text(LIST, encoding="utf-8", newline="")
    with LiveServer(folder / "studies", conf={"worklist": str(folder / "list.txt"), "train_after": "0"}) as running:
        yield running


def test_names_with_blanks_accents_and_extensions_are_found(server: LiveServer) -> None:
    status = requests.get(f"{server.url}/kprism/api/status", timeout=60).json()
    cases = status["cases"]
    assert sorted(entry["id"] for entry in cases["waiting"]) == sorted(NAMES[:3]) and cases["all"] == 3
    assert status["worklist_missing_count"] == 10_000 and status["worklist_problem"] is None
    assert status["worklist_missing"] == [f"other {k}" for k in range(20)]


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("POST", "/infer/interactive?image=a&image=closed"),
        ("POST", "/infer/interactive?image=closed&image=a"),
        ("GET", "/datastore/image?image=a&image=closed"),
        ("HEAD", "/datastore/image?image=a&image=closed"),
        ("GET", "/datastore/label?image=a&label=closed&tag=final"),
        ("GET", "/datastore/label/info?image=a&label=also%20closed&tag=final"),
        ("PUT", "/datastore/?image=closed"),
        ("PUT", "/datastore/"),
        ("PUT", "/datastore/image"),
        ("PUT", "/datastore/updatelabelinfo?label=closed&tag=final"),
        ("DELETE", "/datastore/?id=closed"),
        ("DELETE", "/datastore/image?id=a&id=closed"),
    ],
)
def test_an_image_outside_the_list_is_refused_however_it_is_named(
    server: LiveServer, method: str, address: str
) -> None:
    file = Path(server.studies) / "closed.nii.gz"
    before = file.read_bytes()
    answer = requests.request(
        method,
        server.url + address,
        data={"params": json.dumps({"liver": [[8, 7, 3]]}) if method == "POST" else "{}"},
        files={"file": ("closed.nii.gz", (file.with_name("a.nii.gz")).read_bytes())} if method == "PUT" else None,
        timeout=60,
    )
    assert answer.status_code == 403, answer.text
    if method != "HEAD":
        assert "closed' is not on the work list of this server" in answer.json()["detail"]
    assert file.read_bytes() == before and (Path(server.studies) / "a.nii.gz").is_file()


def test_an_empty_list_says_so(server: LiveServer) -> None:
    path = Path(server.studies).with_name("list.txt")
    before = path.read_bytes()
    try:
        path.write_bytes(b"")
        status = requests.get(f"{server.url}/kprism/api/status", timeout=60).json()
    finally:
        path.write_bytes(before)
    assert status["nothing_to_serve"].endswith("names none of the 5 images of the studies.")
