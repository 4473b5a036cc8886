# SPDX-License-Identifier: Apache-2.0
"""A training that makes the shipped weights worse: nothing is published, and the status says by how much it fell short.

One step at a learning rate of 1 destroys any network, so this needs no luck.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.live_server import LiveServer
from tests.e2e.conftest import xrays
from tests.e2e.site import get, submit, train, version

DESTRUCTIVE = {"max_minutes": 0.01, "learning_rate": 1.0, "mix": False, "distillation": False, "pull": False}


@pytest.fixture
def server(data: Path, tmp_path: Path) -> Iterator[LiveServer]:
    """The shipped weights, which know lungs, and chest X-rays that they have not seen, with their labels."""
    studies = tmp_path / "studies"
    studies.mkdir()
    pictures = xrays(3)
    for name, (image, _) in pictures.items():
        shutil.copyfile(image, studies / f"{name}.png")
    with LiveServer(studies, conf={"train_after": "0"}) as running:
        for name, (_, label) in pictures.items():
            sent = submit(running, name, label.read_bytes(), "lungs", suffix=".png")
            assert sent.status_code == 200, sent.text
        yield running


def test_weights_that_got_worse_are_not_published(server: LiveServer) -> None:
    before = version(server)
    train(server, options=DESTRUCTIVE)
    status = get(server, "/kprism/api/status")
    sentence = status["training"]["sentence"]
    found = re.search(
        r"Not published; the serving weights stay: mean Dice falls by ([\d.]+) points, from ([\d.]+) to ([\d.]+); "
        r".*semantic Dice of lungs falls by ([\d.]+) points, from 0\.9\d+ to 0\.\d+; at most 2 are allowed",
        sentence,
    )
    assert found, sentence
    points, old, new, lungs = map(float, found.groups())
    assert points == pytest.approx(100 * (old - new), abs=0.02) and points > 20 and lungs > 20
    assert status["weights"] == before and status["warning"] is None
    assert [(entry["id"], entry["current"]) for entry in status["versions"]] == [("0", True)]
    page = Path(server.info()["train_stats"]["kprism"]["report"])
    assert page.name.endswith("not-published.html") and f"falls by {found[1]} points" in page.read_text()
