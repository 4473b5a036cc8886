# SPDX-License-Identifier: Apache-2.0
"""Images, labels, data sets, weights and the log as files: whole, one state each, also while others write."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

from benchmarks.live_server import LiveServer

IMAGE = "brain_RAS"
TAG = "draft"
ROUNDS = 40


def label_of(server: LiveServer, value: int) -> bytes:
    """A label of one value on the image's grid; the more values there were, the longer the file."""
    image = nibabel.load(server.studies / f"{IMAGE}.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[: 10 + 3 * value] = np.random.default_rng(value).integers(0, 2, voxels[: 10 + 3 * value].shape)
    return gzip.compress(nibabel.Nifti1Image(voxels, image.affine).to_bytes(), mtime=0)


def put_label(server: LiveServer, content: bytes) -> None:
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": IMAGE, "tag": TAG},
        files={"label": ("label.nii.gz", content)},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def get(server: LiveServer, address: str, **params: str | int) -> requests.Response:
    return requests.get(f"{server.url}{address}", params=params, timeout=60)


@contextmanager
def labels_that_change(server: LiveServer, labels: list[bytes]) -> Iterator[threading.Event]:
    """Somebody replaces the label all the time; the event is set when it has been replaced by each."""
    stop, done = threading.Event(), threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for label in labels:
                put_label(server, label)
            done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def test_a_label_that_is_replaced_is_sent_whole(server: LiveServer) -> None:
    labels = [label_of(server, value) for value in (1, 9, 20)]
    put_label(server, labels[0])
    seen = set()
    with labels_that_change(server, labels) as changed:
        while not changed.is_set() or len(seen) < len(labels):
            for _ in range(ROUNDS):
                answer = get(server, "/datastore/label", label=IMAGE, tag=TAG)
                assert answer.status_code == 200, answer.text
                seen.add(answer.content)
    assert seen == set(labels)


def test_an_image_is_sent_as_it_is_stored(server: LiveServer) -> None:
    for name in ("brain_LPS.nii.gz", "brain_nrrd.nrrd", "grey.png", "colour.jpg"):
        answer = get(server, "/datastore/image", image=name.split(".")[0])
        assert answer.content == (server.studies / name).read_bytes()
        assert f'filename="{name}"' in answer.headers["Content-Disposition"]


@pytest.mark.parametrize(
    ("address", "params"),
    [
        ("/datastore/image", {"image": "nobody"}),
        ("/datastore/label", {"label": "nobody", "tag": "final"}),
        ("/datastore/label", {"label": IMAGE, "tag": "never"}),
        ("/model/nobody", {}),
    ],
)
def test_what_is_not_there_is_named(server: LiveServer, address: str, params: dict[str, str]) -> None:
    answer = get(server, address, **params)
    assert answer.status_code == 404
    assert next(iter(params.values()), "nobody") in answer.json()["detail"]


def test_the_data_set_holds_every_labelled_image(server: LiveServer) -> None:
    answer = get(server, "/datastore/dataset")
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    path = server.studies / "brain_LPS.nii.gz"
    assert archive.read(f"image/{path.name}") == path.read_bytes()
    labelled = {Path(name).name for name in archive.namelist() if name.startswith("label/")}
    assert path.name in labelled


def test_the_weights_are_those_that_serve(server: LiveServer) -> None:
    answer = get(server, "/model/semantic")
    assert answer.status_code == 200, answer.text
    assert 'filename="semantic.safetensors"' in answer.headers["Content-Disposition"]
    known = get(server, "/model/info/semantic").json()["checksum"]
    assert known.removeprefix("SHA256:") == hashlib.sha256(answer.content).hexdigest()


def test_the_log_is_sent_while_it_grows(server: LiveServer) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            get(server, "/datastore/label", label="nobody", tag="final")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(ROUNDS):
            whole = get(server, "/logs/", lines=0)
            assert whole.status_code == 200
            last = get(server, "/logs/", lines=5, html="false")
            assert last.text.count("\n") <= 5
    finally:
        stop.set()
        thread.join()
