# SPDX-License-Identifier: Apache-2.0
"""One Orthanc and one server on it for all tests here, with a small network of seeded random weights.

The server starts first, while the store is off: what it says then is kept for a test.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch

import tests.unit.dicom_files  # noqa: F401 - before MONAI Label, whose wheel has a package of the name tests.unit
from benchmarks.live_server import LiveServer, free_port
from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from tests.conftest import lacking
from tests.e2e.store.orthanc_site import Site
from tools.orthanc import Orthanc

NOBODY = "1.2.3.4"
"""A series that no store has."""


def _weights(folder: Path) -> Path:
    torch.manual_seed(0)
    network = KPrism(KPrismConfig.tiny(num_classes=2)).eval()
    save_checkpoint(folder / "random", network, ClassRegistry(["liver", "spleen"]), metadata={})
    return folder / "random.safetensors"


def _ask_without_store(server: LiveServer) -> dict[str, requests.Response]:
    return {
        "info": requests.get(f"{server.url}/info/", timeout=60),
        "infer": server.infer("semantic", NOBODY, {}),
        "next": requests.post(f"{server.url}/activelearning/random", json={}, timeout=60),
        "viewer": requests.get(f"{server.url}/kprism/dicom-web/studies", timeout=60),
        "case": requests.get(f"{server.url}/kprism/api/case/{NOBODY}", timeout=60),
        "status": requests.get(f"{server.url}/kprism/api/status", timeout=60),
    }


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The store and the server."""
    if shutil.which("Orthanc") is None:
        lacking("Orthanc is not installed (Debian, Ubuntu: apt install orthanc orthanc-dicomweb)")
    folder = tmp_path_factory.mktemp("store")
    orthanc = Orthanc(folder / "orthanc", free_port())
    conf = {"model_path": str(_weights(folder)), "train_after": "0", "train_minutes": "0.02"}
    conf["state"] = str(folder / "state")
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache")}
    with LiveServer(orthanc.url, conf=conf, environment=environment) as server:
        running = Site(orthanc, server, folder / "state", _ask_without_store(server))
        orthanc.start()
        try:
            yield running
        finally:
            orthanc.stop()
