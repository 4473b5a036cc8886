# SPDX-License-Identifier: Apache-2.0
"""A server on an address that is not that of a DICOMweb server: it says so, once, and not every two seconds."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks.live_server import free_port
from benchmarks.places import ROOT
from lib.dicom.web import DicomWeb, StoreDownError, StoreError
from tests.e2e.browser import program
from tests.e2e.viewer.site import wait
from tools.orthanc import Orthanc


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an Orthanc, without its path."""
    program("Orthanc", "orthanc", package="orthanc orthanc-dicomweb")
    with Orthanc(tmp_path_factory.mktemp("wrong") / "orthanc", free_port()) as store:
        yield store.url.removesuffix("/dicom-web")


@pytest.mark.parametrize("path", ["", "/", "/dicom-web/studies", "/dicomweb", "/app/explorer.html", "/system"])
def test_a_wrong_path_is_told(orthanc: str, path: str) -> None:
    with pytest.raises(StoreError) as caught:
        DicomWeb.at(orthanc + path).search()
    assert not isinstance(caught.value, StoreDownError)
    assert "has no DICOMweb at this address" in str(caught.value) or "is the address right?" in str(caught.value)


@pytest.mark.parametrize("path", ["", "/dicomweb", "nobody"])
def test_the_log_says_it_once(orthanc: str, tmp_path: Path, path: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web" if path == "nobody" else orthanc + path
    port, log = free_port(), tmp_path / "log"
    words = ["--studies", url, "--port", str(port), "--conf", "state", tmp_path / "state"]
    environment = {**os.environ, "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache")}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [ROOT / "kprism", "serve", *words], stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
    try:
        wait(lambda: "[WARNING]" in log.read_text() and "the DICOMweb server" in log.read_text(), "warning")
        time.sleep(6.5)  # three more attempts
        status = requests.get(f"http://127.0.0.1:{port}/kprism/api/status", timeout=60)
        assert status.status_code in (200, 502) and process.poll() is None
        if status.status_code == 502:
            assert "has no DICOMweb at this address" in status.json()["detail"]
        said = [line for line in log.read_text().splitlines() if "[WARNING]" in line and "the DICOMweb server" in line]
        assert 1 <= len(said) <= 3, said
    finally:
        process.terminate()
        process.wait(30)
