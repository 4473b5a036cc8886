# SPDX-License-Identifier: Apache-2.0
"""The loop with a running server: submit, use at once, train, publish, exchange, roll back; and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from threading import Event, Thread

import numpy as np
import pytest
import requests

from benchmarks.live_server import LiveServer
from benchmarks.places import ROOT
from tests.e2e.site import NEW, SHAPE, Site, as_file, block, get, submit, train, version, wait


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[LiveServer]:
    """Its trainings have two processes, as on a machine with two GPUs."""
    with site.serve(train_minutes="0.1", train_processes="2") as running:
        yield running


def test_a_label_serves_the_next_case_at_once(server: LiveServer, site: Site) -> None:
    assert NEW not in server.info()["labels"]
    saved = submit(server, "a", site.labels["a"])
    assert saved.status_code == 200, saved.text
    assert NEW in server.info()["labels"]
    answer = server.infer("in_context", "b", {"structures": NEW, "presence": 0}, output="json").json()
    assert [used["image"] for used in answer["references"][NEW]] == ["a"]
    assert set(answer["references"][NEW][0]["slices"]) <= {1, 2}
    alone = server.infer("in_context", "a", {"structures": NEW}, output="json")
    assert alone.status_code == 400 and NEW in alone.json()["detail"]  # a case is no reference of its own
    entry = json.loads(next((site.studies / ".kprism" / "intake" / "cases").glob("*.json")).read_text())
    assert (entry["image_id"], entry["by"], entry["structures"]) == ("a", "anna", {NEW: 1})


@pytest.mark.parametrize(
    ("image", "content", "status", "sentence"),
    [
        ("c", b"no volume", 400, "the label of image 'c'"),
        ("c", as_file(np.zeros(SHAPE, np.uint8)), 400, "is empty: no voxel is labelled"),
        ("c", as_file(np.ones((64, 64, 4), np.uint8)), 400, "64 x 64 x 4"),
        ("nobody", as_file(block(30, 30)), 404, "'nobody'"),
    ],
)
def test_a_label_that_cannot_be_used_is_refused(
    server: LiveServer, image: str, content: bytes, status: int, sentence: str
) -> None:
    before = get(server, "/datastore/")["completed"]
    answer = submit(server, image, content)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["detail"]
    assert get(server, "/datastore/")["completed"] == before


class Asking:
    """Somebody who asks for masks all the time; `versions` are those that answered, in order."""

    def __init__(self, server: LiveServer) -> None:
        self.versions: list[str] = []
        self.failures: list[str] = []
        self._server, self._stop = server, Event()
        self._thread = Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(0.2):
            answer = self._server.infer("interactive", "f", {NEW: [[30, 30, 1]]}, output="json")
            if answer.status_code != 200:
                self.failures.append(answer.text)
            elif answer.json()["weights_version"] not in self.versions[-1:]:
                self.versions.append(answer.json()["weights_version"])


def test_a_training_publishes_and_the_server_follows(server: LiveServer, site: Site) -> None:
    for name in "bcd":
        assert submit(server, name, site.labels[name]).status_code == 200
    shipped = version(server)

    def meanwhile() -> None:
        wait(lambda: server.info()["train_stats"]["kprism"].get("found") == 4, server)
        again = requests.post(f"{server.url}/train/kprism", json={}, timeout=60)
        assert again.status_code == 429, again.text
        assert submit(server, "e", site.labels["e"]).status_code == 200

    with Asking(server) as asking:
        train(server, meanwhile)
        assert get(server, "/train/")["status"] == "DONE", server.log()[-5000:]
        stats = server.info()["train_stats"]["kprism"]
        wait(lambda: version(server) != shipped, server)
        wait(lambda: len(asking.versions) == 2, server)
    assert asking.failures == []
    assert asking.versions == [shipped, version(server)]
    assert (stats["epoch"], stats["total_epochs"]) == (20, 20)
    assert 0 < stats["best_metric"] <= 1 and stats["total_time"].startswith("0:0")
    assert stats["message"].startswith(f"published as version 1: {NEW} (semantic) 0.")
    assert stats["found"] == 4  # e came during the training and counts for the next
    status = get(server, "/kprism/api/status")
    assert status["warning"] is None
    assert "Published as version 1" in status["training"]["sentence"]
    assert [(entry["id"], entry["current"]) for entry in status["versions"]] == [("1", True), ("0", False)]
    described = json.loads((site.versions / "0001.json").read_text())["metadata"]["note"]
    assert described["processes"] == 2 and described["trained_on"] == list("abcd")
    assert NEW in status["known"] and NEW in server.info()["models"]["semantic"]["labels"]
    answer = server.infer("semantic", "f", {"structures": NEW}, output="json").json()
    assert answer["weights_version"] == status["weights"] != shipped
    assert answer["answered_by"] == {NEW: "version 1"}
    known = server.infer("semantic", "f", {"structures": "liver"}, output="json").json()
    assert known["answered_by"] == {"liver": "shipped"}


def versions_command(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [ROOT / "kprism", "versions", "--folder", site.versions, "--shipped", site.weights, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_back_to_an_earlier_version_and_forth(server: LiveServer, site: Site) -> None:
    trained = version(server)
    answer = requests.post(f"{server.url}/kprism/api/versions/0/current", timeout=60)
    assert answer.status_code == 200, answer.text
    wait(lambda: version(server) != trained, server)
    back = server.infer("semantic", "f", {"structures": NEW}, output="json").json()
    assert back["answered_by"] == {NEW: "references"}
    forth = versions_command(site, "rollback", "1")
    assert forth.returncode == 0, forth.stderr
    wait(lambda: version(server) == trained, server)
    assert versions_command(site, "list").stdout.splitlines()[1].startswith("*    1")
    assert requests.post(f"{server.url}/kprism/api/versions/7/current", timeout=60).status_code == 400


def test_every_strategy_names_an_unlabelled_case(server: LiveServer, site: Site) -> None:
    for strategy in server.info()["strategies"]:
        chosen = requests.post(f"{server.url}/activelearning/{strategy}", json={}, timeout=60).json()
        assert chosen["id"] == "f", strategy
    assert submit(server, "f", site.labels["f"]).status_code == 200
    assert requests.post(f"{server.url}/activelearning/random", json={}, timeout=60).json() == {}


def test_a_removed_label_is_no_reference(server: LiveServer, site: Site) -> None:
    removed = requests.delete(f"{server.url}/datastore/label", params={"id": "f", "tag": "final"}, timeout=60)
    assert removed.status_code == 200, removed.text
    params = {"structures": NEW, "presence": 0, "reference_slices": 5}
    answer = server.infer("in_context", "a", params, output="json").json()
    assert {used["image"] for used in answer["references"][NEW]} == set("bcde")


def test_a_damaged_version_is_left_out_at_the_next_start(server: LiveServer, site: Site) -> None:
    """Last: it stops the server of this file."""
    server.stop()
    file = site.versions / "0001.safetensors"
    content = bytearray(file.read_bytes())
    content[-8] ^= 255
    file.write_bytes(bytes(content))
    with site.serve() as restarted:
        status = get(restarted, "/kprism/api/status")
        assert "version 1 of the weights is damaged" in status["warning"]
        assert NEW in restarted.info()["labels"]  # the labels are there, whatever serves
        answer = restarted.infer("in_context", "f", {"structures": NEW, "presence": 0}, output="json").json()
        assert answer["weights_version"] == status["weights"]
        assert {used["image"] for used in answer["references"][NEW]} <= set("abcde")
