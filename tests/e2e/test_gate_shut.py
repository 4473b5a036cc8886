# SPDX-License-Identifier: Apache-2.0
"""A training that makes worse weights than the shipped ones: nothing changes, and the status says of what.

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

DESTRUCTIVE = {"max_minutes": 0.01, "learning_rate": 1.0}

PATIENTS = 6
"""As many as the gate needs to tell."""


@pytest.fixture
def server(data: Path, tmp_path: Path) -> Iterator[LiveServer]:
    """The shipped weights, which know lungs, and chest X-rays that they have not seen, with their labels."""
    studies = tmp_path / "studies"
    studies.mkdir()
    pictures = xrays(PATIENTS)
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
    worse = ", ".join(f"lungs ({mode})" for mode in ("semantic", "in_context", "interactive"))
    assert f"Nothing changes: worse: {worse}" in sentence
    assert status["weights"] == before and status["warning"] is None
    assert [(entry["id"], entry["current"]) for entry in status["versions"]] == [("0", True)]
    page = Path(server.info()["train_stats"]["kprism"]["report"])
    row = re.search(r"<td>lungs</td><td>semantic</td><td>shipped weights</td>(.*?)</tr>", page.read_text())
    assert page.name.endswith("not-published.html") and row
    shipped, new = (float(value) for value in re.findall(r"0\.\d{4}", row[1]))
    assert shipped > 0.9 and new < 0.5 and f'<td class="number">{PATIENTS}</td><td>worse</td>' in row[1]
