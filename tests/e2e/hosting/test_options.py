# SPDX-License-Identifier: Apache-2.0
"""The options of `./kprism serve` about addresses, from the command line to the answers."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks.live_server import free_port
from benchmarks.places import ROOT
from tests.e2e.viewer.site import wait


def host() -> str:
    """An address that must not be printed as it is: of version 6, or where the machine has none, for all addresses."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return "0.0.0.0"
    return "::1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that the command has printed, of a server that answers there."""
    folder: Path = tmp_path_factory.mktemp("options")
    (folder / "studies").mkdir()
    log = folder / "log"
    words = ["--studies", folder / "studies", "--host", host(), "--port", str(free_port())]
    words += ["--root-path", "monai/", "--allow-origin", "*"]
    with log.open("wb") as stream:
        process = subprocess.Popen([ROOT / "kprism", "serve", *words], stdout=stream, stderr=subprocess.STDOUT)
    try:
        printed = wait(lambda: re.search(r"serves \S+ on (http://\S+) \(viewer", log.read_text()), "address")

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return requests.get(f"{printed[1]}/info/", timeout=60).ok
            except requests.ConnectionError:
                return False

        wait(answers, "answer at the printed address")
        assert "kprism: a reverse proxy has it under /monai/, as /monai/ohif/" in log.read_text()
        yield printed[1]
    finally:
        process.terminate()
        process.wait(30)


def test_the_server_answers_with_and_without_the_path_of_the_proxy(address: str) -> None:
    for path in ("/info/", "/kprism/api/status", "/kprism/page.js", "/openapi.json"):
        plain, prefixed = (requests.get(f"{address}{root}{path}", timeout=60) for root in ("", "/monai"))
        assert (plain.status_code, prefixed.status_code) == (200, 200), path
        if path != "/kprism/api/status":  # it tells the time
            assert plain.content == prefixed.content
    root = requests.get(f"{address}/monai", timeout=60)
    assert root.url == f"{address}/monai/" and "K-Prism - APIs" in root.text
    assert requests.get(f"{address}/monaix/info/", timeout=60).status_code == 404


def test_any_origin_may_ask_without_a_password(address: str) -> None:
    for origin in ("https://ohif.example.org", "http://10.0.0.1:3000", "null"):
        asked = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
        preflight = requests.options(f"{address}/datastore/label", headers=asked, timeout=60)
        answer = requests.get(f"{address}/info/", headers={"Origin": origin, "Cookie": "session=1"}, timeout=60)
        for said in (preflight, answer):
            assert said.status_code == 200
            assert said.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in said.headers
        assert "Content-Disposition" in answer.headers["Access-Control-Expose-Headers"]
