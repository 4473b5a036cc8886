# SPDX-License-Identifier: Apache-2.0
"""The server takes up published versions, prepares references and starts trainings, without losing a request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.partial import AnnotatedCase
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib.engine import Engine
from lib.learning.reference_cache import ReferenceCache
from lib.learning.submission_store import Submission
from lib.learning.training_schedule import TrainingLog, TrainingSchedule
from lib.learning.versions import Versions
from lib.learning.weight_reloader import WeightReloader, networks_of
from lib.routes import IN_CONTEXT, MODES


class Server:
    """Everything that follows, on a tiny network."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.registry = ClassRegistry(["liver"])
        save_checkpoint(folder / "shipped", self.network(), self.registry, metadata={})
        self.versions = Versions(folder / "versions", folder / "shipped.safetensors")
        served = self.versions.load()
        self.engine = Engine(networks_of(served, "cpu"), 1 << 20)
        self.submissions: list[Submission] = []
        self.reference_cache = ReferenceCache(folder / "bank", lambda submission: square(submission.image_id))
        self.trainings = 0
        schedule = TrainingSchedule(
            TrainingLog(folder),
            lambda: self.submissions,
            start=self.train,
            options=lambda thorough: {"in_context": thorough},
            status=lambda: None,
            every=2,
        )
        self.reloader = WeightReloader(
            self.versions, self.engine, self.reference_cache, lambda: self.submissions, schedule,
            device="cpu", served=served, stamp=self.versions.stamp(),
        )  # fmt: skip

    @staticmethod
    def network() -> KPrism:
        return KPrism(KPrismConfig.tiny(num_classes=1)).eval()

    def publish(self, routes: Mapping[str, Mapping[str, int | None]] | None = None) -> int:
        """A version with new random weights, which by default answers everything itself."""
        routes = {mode: {"liver": None} for mode in MODES} if routes is None else routes
        return self.versions.publish(self.network(), self.registry, metadata={}, routes=routes)

    def train(self, options: Mapping[str, Any]) -> None:
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
    before = server.engine.networks()
    assert server.reloader.number == 0
    server.publish()
    server.reloader.step()
    after = server.engine.networks()
    assert server.reloader.number == 1 and after.version == server.versions.current().weights_version
    assert before is not after and after.shipped is before.shipped
    part = after.of(IN_CONTEXT, "liver")
    assert part is after.parts[1] and part.predictor.model is not before.shipped.predictor.model
    passes = part.predictor.encoder_passes
    assert (
        server.reference_cache.update(part.predictor, part.version, server.submissions) == 0
    )  # encoded before the exchange
    assert part.predictor.encoder_passes == passes == 1


def test_a_rollback_is_followed_too(server: Server) -> None:
    server.publish()
    server.reloader.step()
    server.versions.roll_back(0)
    server.reloader.step()
    assert server.reloader.number == 0
    networks = server.engine.networks()
    assert networks.version == networks.shipped.version == server.versions.version(0).weights_version
    assert not networks.parts and not networks.routes.numbers()


def test_networks_that_still_answer_are_neither_loaded_nor_encoded_again(server: Server) -> None:
    server.submit("a")
    server.publish()
    server.reloader.step()
    before = server.engine.networks()
    server.publish({"semantic": {"liver": None}, "in_context": {"liver": 1}})
    server.versions.version(1).path.touch()
    server.reloader.step()
    after = server.engine.networks()
    assert after.shipped is before.shipped and after.parts[1] is before.parts[1]
    assert after.version == server.versions.current().weights_version
    assert [after.of(mode, "Liver").name for mode in MODES] == ["version 2", "version 1", "shipped"]
    assert after.parts[1].predictor.encoder_passes == 1
    assert after.parts[2].predictor.encoder_passes == after.shipped.predictor.encoder_passes == 0


def test_references_of_networks_that_no_longer_answer_are_removed(server: Server) -> None:
    server.submit("a")
    for _ in range(3):
        server.publish()
        server.reloader.step()
        server.reloader.step()
    kept = {path.name.split("-")[0] for path in (server.versions.folder.parent / "bank").glob("*.safetensors")}
    numbers = (2, 3)  # the serving version, and the one before for requests that still use it
    assert kept == {server.versions.version(number).weights_version for number in numbers}
    server.versions.roll_back(0)
    server.reloader.step()
    version = server.engine.networks().version
    assert server.reference_cache.structures(version) == ["liver"]


def test_a_damaged_version_is_not_taken_up_and_the_reason_is_told(server: Server) -> None:
    server.publish()
    server.reloader.step()
    server.publish()
    server.versions.version(2).path.write_bytes(b"damaged")
    server.reloader.step()
    assert server.reloader.number == 1
    assert server.reloader.warning is not None and "version 2 of the weights is damaged" in server.reloader.warning


def test_a_new_label_is_a_reference_within_a_second_and_enough_of_them_start_a_training(server: Server) -> None:
    server.reloader.start()
    version = server.engine.networks().version
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
    server.publish()
    deadline = time.monotonic() + 60
    while server.reloader.number == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    server.reloader.stop()
    assert server.reloader.number == 1


def test_it_ends_after_the_case_that_it_encodes_and_is_not_waited_for_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.learning.weight_reloader.STOP_TIMEOUT_SECONDS", 0.1)
    begun, go_on, read = Event(), Event(), []

    def load(submission: Submission) -> AnnotatedCase:
        read.append(submission.image_id)
        begun.set()
        assert go_on.wait(60)
        return square(submission.image_id)

    monkeypatch.setattr(server.reference_cache, "_load", load)
    for name in "abc":
        server.submit(name)
    server.reloader.start()
    thread = server.reloader._thread
    assert thread is not None and begun.wait(60)
    server.reloader.stop()
    assert thread.is_alive()  # it waits for a store
    go_on.set()
    thread.join(60)
    assert not thread.is_alive() and len(read) == 1


def test_versions_and_trainings_do_not_wait_until_thousands_of_cases_are_encoded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.learning.weight_reloader.ENCODED_PER_CHECK", 3)
    for number in range(7):
        server.submit(f"case {number}")
    encoded = []
    trainings = []
    for _ in range(4):
        server.reloader.step()
        encoded.append(len(list((tmp_path / "bank").glob("*.safetensors"))))
        trainings.append(server.trainings)
    assert encoded == [3, 6, 7, 7]
    assert trainings[0] == 1  # the schedule was asked before all cases were encoded
