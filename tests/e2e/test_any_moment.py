# SPDX-License-Identifier: Apache-2.0
"""Campaign: the server is killed at any moment while labels come in and it trains; what it answered is kept."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Timer

import nibabel
import numpy as np
import requests

from benchmarks.live_server import LiveServer
from kprism_model.files import PART
from lib.learning.versions import Versions
from tests.budget import Budget
from tests.e2e.site import Site, as_file, block, get, submit

LATEST_KILL = 4.0
"""Seconds of work before the kill, at most: time for some labels, and for a training to begin or to end."""


class Annotator:
    """Somebody who labels one case after another; `stored` holds the labels that the server has answered for."""

    def __init__(self, site: Site) -> None:
        self.stored: dict[str, np.ndarray] = {}
        self.unanswered: tuple[str, np.ndarray] | None = None
        self._site = site

    def work(self, server: LiveServer, rng: np.random.Generator) -> None:
        """Submit labels until the server is gone."""
        while True:
            image, label = str(rng.choice([*self._site.labels])), block(*rng.integers(20, 44, 2))
            self.unanswered = image, label
            try:
                answer = submit(server, image, as_file(label))
            except requests.ConnectionError:
                return
            assert answer.status_code == 200, answer.text
            self.stored[image], self.unanswered = label, None

    def look(self, server: LiveServer) -> None:
        """Compare what a new server has with what the one before it answered for."""
        state = self._site.studies / ".kprism" / "intake"
        # A temporary file of the write that the kill interrupted stays until it is old: another process may write it.
        assert [path for path in (state / "pending").iterdir() if path.suffix != PART] == []
        for path in state.glob("cases/*.json"):
            entry = json.loads(path.read_text())
            image, kept = entry["image_id"], voxels(state / entry["label"])
            np.testing.assert_array_equal(kept, voxels(self._site.studies / "labels" / "final" / f"{image}.nii"))
            if self.unanswered is not None and image == self.unanswered[0] and np.array_equal(kept, self.unanswered[1]):
                self.stored[image] = kept
            np.testing.assert_array_equal(kept, self.stored[image], err_msg=image)
        assert get(server, "/datastore/")["completed"] == len(self.stored)
        self.unanswered = None


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def look_at_versions(server: LiveServer, site: Site) -> None:
    """Every published version is whole, and one of them serves."""
    status = get(server, "/kprism/api/status")
    assert status["warning"] is None
    assert [entry["current"] for entry in status["versions"]].count(True) == 1
    versions = Versions(site.versions, site.weights)
    assert [versions.fault(version) for version in versions.known()] == [None] * len(status["versions"])


def test_what_was_answered_is_kept_whatever_the_moment(tmp_path: Path, budget: Budget) -> None:
    site = Site(tmp_path)
    annotator = Annotator(site)
    for _, rng in budget.rounds(short=1):
        with site.serve(train_after="3", train_minutes="0.05") as server:
            annotator.look(server)
            look_at_versions(server, site)
            timer = Timer(rng.uniform(0.1, LATEST_KILL), server.process.kill)
            timer.start()
            annotator.work(server, rng)
            timer.join()
            server.process.wait(60)
    with site.serve() as server:
        annotator.look(server)
        look_at_versions(server, site)
    assert annotator.stored
