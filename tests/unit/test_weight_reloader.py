# SPDX-License-Identifier: Apache-2.0
"""The server takes up published versions, prepares references and starts trainings, without losing a request."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib.engine import Engine, network_of
from lib.learning.reference_cache import ReferenceCache
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import TrainingLog, TrainingSchedule
from lib.learning.versions import Versions
from lib.learning.weight_reloader import WeightReloader


class Server:
    """Everything that follows, on a tiny network."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.registry = ClassRegistry(["liver"])
        save_checkpoint(folder / "shipped", self.network(), self.registry, metadata={})
        self.versions = Versions(folder / "versions", folder / "shipped.safetensors")
        served = self.versions.load()
        self.engine = Engine(network_of(served.checkpoint, "cpu"), 1 << 20)
        self.submissions: list[Submission] = []
        self.reference_cache = ReferenceCache(folder / "bank", lambda submission: square(submission.image_id))
        self.trainings = 0
        schedule = TrainingSchedule(
            TrainingLog(folder), lambda: self.submissions, start=self.train, status=lambda: None, every=2
        )
        self.reloader = WeightReloader(
            self.versions, self.engine, self.reference_cache, lambda: self.submissions, schedule,
            device="cpu", served=served, stamp=self.versions.stamp(),
        )  # fmt: skip

    @staticmethod
    def network() -> KPrism:
        return KPrism(KPrismConfig.tiny(num_classes=1)).eval()

    def train(self) -> None:
        self.trainings += 1

    def submit(self, name: str) -> None:
        self.submissions.append(Submission(name, name, 0, {"liver": 1}, "", "", "", f"{name} content", "", 0.0))


def square(name: str) -> AnnotatedCase:
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[0, 10:30, 10:30] = 1
    return AnnotatedCase(name, name, labels.astype(np.float32), labels, {"liver": 1})


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_a_published_version_answers_from_the_next_request_on(server: Server) -> None:
    server.submit("a")
    server.reloader.step()
    before = server.engine.network()
    assert server.reloader.number == 0
    server.versions.publish(server.network(), server.registry, metadata={})
    server.reloader.step()
    after = server.engine.network()
    assert server.reloader.number == 1 and after.version == server.versions.current().weights_version
    assert before is not after and before.predictor.model is not after.predictor.model
    passes = after.predictor.encoder_passes
    assert (
        server.reference_cache.update(after.predictor, after.version, server.submissions) == 0
    )  # encoded before the exchange
    assert after.predictor.encoder_passes == passes == 1


def test_a_rollback_is_followed_too(server: Server) -> None:
    server.versions.publish(server.network(), server.registry, metadata={})
    server.reloader.step()
    server.versions.roll_back(0)
    server.reloader.step()
    assert server.reloader.number == 0
    assert server.engine.network().version == server.versions.version(0).weights_version


def test_a_damaged_version_is_not_taken_up_and_the_reason_is_told(server: Server) -> None:
    server.versions.publish(server.network(), server.registry, metadata={})
    server.reloader.step()
    server.versions.publish(server.network(), server.registry, metadata={})
    server.versions.version(2).path.write_bytes(b"damaged")
    server.reloader.step()
    assert server.reloader.number == 1
    assert server.reloader.warning is not None and "version 2 of the weights is damaged" in server.reloader.warning


def test_a_new_label_is_a_reference_within_a_second_and_enough_of_them_start_a_training(server: Server) -> None:
    server.reloader.start()
    version = server.engine.network().version
    for name in ("a", "b"):
        server.submit(name)
        server.reloader.wake()
    deadline = time.monotonic() + 60
    while not server.trainings and time.monotonic() < deadline:
        time.sleep(0.01)
    server.reloader.stop()
    assert server.trainings >= 1
    assert server.reference_cache.structures(version) == ["liver"]


def test_the_thread_outlives_what_goes_wrong(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.learning.weight_reloader.POLL_SECONDS", 0.01)
    monkeypatch.setattr(server.reloader, "_submissions", lambda: (_ for _ in ()).throw(OSError("disk")))
    server.reloader.start()
    time.sleep(0.2)
    monkeypatch.setattr(server.reloader, "_submissions", lambda: server.submissions)
    server.versions.publish(server.network(), server.registry, metadata={})
    deadline = time.monotonic() + 60
    while server.reloader.number == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.reloader.stop()
    assert server.reloader.number == 1
