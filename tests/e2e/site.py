# SPDX-License-Identifier: Apache-2.0
"""A site for the learning loop: small volumes with bright blocks, weights that do not know them by name, a server.

The network is tiny and knows blocks of another name, so a few seconds of training are enough to beat references.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import requests

from benchmarks.live_server import LiveServer
from tests.tiny_network import copy_weights

SHAPE = (64, 64, 3)
PLACE = np.diag([1.0, 1.0, 4.0, 1.0])
NEW = "cyst"
PATIENCE = 240.0  # seconds; a training takes a few, this is for a busy machine


def block(row: int, column: int) -> np.ndarray:
    """A label of one bright block on two of three slices."""
    label = np.zeros(SHAPE, np.uint8)
    label[row - 10 : row + 10, column - 8 : column + 8, 1:] = 1
    return label


def as_file(voxels: np.ndarray) -> bytes:
    """A .nii file."""
    return bytes(nibabel.Nifti1Image(voxels, PLACE).to_bytes())


class Site:
    """A folder of studies with blocks in noise, and weights that do not know them."""

    def __init__(self, folder: Path) -> None:
        self.studies = folder / "studies"
        self.studies.mkdir(parents=True)
        rng = np.random.default_rng(0)
        self.labels: dict[str, bytes] = {}
        for name in "abcdef":
            label = block(*rng.integers(20, 40, 2))
            image = label * np.float32(50) + rng.normal(100, 5, SHAPE).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(image, PLACE), self.studies / f"{name}.nii.gz")
            self.labels[name] = as_file(label)
        self.weights = copy_weights(folder / "shipped")
        self.versions = self.studies / ".kprism" / "versions"

    def serve(self, **conf: str) -> LiveServer:
        """A server on the studies; nothing is trained unless asked for."""
        return LiveServer(self.studies, conf={"model_path": str(self.weights), "train_after": "0", **conf})


def submit(
    server: LiveServer, image: str, content: bytes, name: str = NEW, *, suffix: str = ".nii"
) -> requests.Response:
    """As 3D Slicer submits a label."""
    return requests.put(
        f"{server.url}/datastore/label",
        params={"image": image, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": name, "idx": 3}], "client_id": "anna"})},
        files={"label": (f"{image}{suffix}", content)},
        timeout=60,
    )


def get(server: LiveServer, address: str, **params: Any) -> Any:
    answer = requests.get(f"{server.url}{address}", params=params, timeout=60)
    assert answer.ok, f"{answer.status_code} {answer.text}\n{server.log()[-8000:]}"
    return answer.json()


def wait(condition: Callable[[], Any], server: LiveServer) -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, server.log()[-8000:]
        time.sleep(0.1)
    return value


def version(server: LiveServer) -> str:
    """Version of the weights that answer."""
    return str(get(server, "/kprism/api/status")["weights"])


def train(server: LiveServer, during: Callable[[], None] = lambda: None, options: dict[str, Any] | None = None) -> None:
    """Train as the buttons of both viewers do, and wait for the end."""
    started = requests.post(f"{server.url}/train/kprism", json=options or {}, timeout=60)
    assert started.status_code == 200, started.text
    wait(lambda: get(server, "/train/")["status"] != "SUBMITTED", server)
    during()
    wait(lambda: get(server, "/train/")["status"] not in ("SUBMITTED", "RUNNING"), server)
