# SPDX-License-Identifier: Apache-2.0
"""What turns submitted labels into better answers, put together: intake, versions, references, training, strategies.

Every process of the app has these parts; only the server starts their threads (`start`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from kprism_model.network.references import References
from kprism_model.predictor import ImageEmbedding
from lib.configs.app_config import AppConfig
from lib.datastore import image_path
from lib.engine import Engine, network_of
from lib.errors import RequestError
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.reading import read_image
from lib.learning.earlier_structures import EarlierStructures
from lib.learning.reference_cache import ReferenceCache
from lib.learning.reloading import WeightReloader
from lib.learning.scores import ScoreBoard, Scores, score_image
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import SubmissionStore
from lib.learning.submitted_references import SubmittedReferences
from lib.learning.traffic import Traffic
from lib.learning.training_schedule import Schedule
from lib.learning.versions import Versions
from lib.request_statistics import RequestStatistics
from lib.trainers import tasks
from lib.trainers.active_learner import ActiveLearner

logger = logging.getLogger(__name__)

TRAINER = "kprism"
"""Name of the train task."""

ENOUGH = 10.0
"""Seconds that the end of the server waits for its beginning."""

REFERENCES = 3
"""References by which an unlabelled case is scored."""


class LearningLoop:
    """The parts, on the state folder of `config`; CheckpointError (a ValueError) if no version can be loaded."""

    def __init__(self, config: AppConfig, datastore: Datastore) -> None:
        self.config, self.datastore = config, datastore
        self.versions = Versions(config.state / "versions", config.model_path, keep=config.keep_versions)
        self._stamp = self.versions.stamp()  # before loading, so that a version that comes meanwhile is noticed
        self._served = self.versions.load(device=config.device)
        network = network_of(self._served.checkpoint, config.device)
        self.engine = Engine(network, config.cache_mb << 20)
        self.book = LabelRegistry([*network.registry.names, *config.labels])
        self.ledger = SubmissionStore(config.state / "intake")
        self.intake = SubmissionService(
            self.ledger,
            datastore,
            self.book,
            unknown=config.unknown_structures,
            patients=config.patients,
            read=self.engine.image,
        )
        self.bank = ReferenceCache(
            config.state / "bank",
            self.intake.load,
            run=lambda compute: self.engine.run("encode", RequestStatistics(), compute),
        )
        self.submitted_cases = SubmittedReferences(self.bank, self.intake, self.engine)
        self.earlier_structures = EarlierStructures(self.versions, self.ledger, self.book)
        self.trainer = ActiveLearner(
            self.intake,
            self.versions,
            config.state / "training",
            config.device,
            minutes=config.train_minutes,
            processes=config.train_processes,
            tracking_uri=config.tracking_uri,
        )
        self.trainers = {TRAINER: self.trainer}
        self.traffic = Traffic()
        self.board = ScoreBoard(
            config.state / "scores",
            lambda: self.engine.network().version,
            datastore.list_images,
            self._score,
            busy=lambda: self.traffic.busy or tasks.is_running(),
        )
        self.follower: WeightReloader | None = None
        self._beginning: Thread | None = None
        self._ending = Event()

    def start(self) -> None:
        """In the server, before it answers: finish what was interrupted, then work in the background."""
        self.intake.recover()
        schedule = Schedule(
            self.trainer.log,
            self.ledger.submissions,
            start=lambda: tasks.start({"model": TRAINER}),
            status=tasks.status,
            every=self.config.train_after,
        )
        self.follower = WeightReloader(
            self.versions,
            self.engine,
            self.bank,
            self.ledger.submissions,
            schedule,
            device=self.config.device,
            served=self._served,
            stamp=self._stamp,
        )
        self._beginning = Thread(target=self._begin, args=(self.follower,), name="begin", daemon=True)
        self._beginning.start()
        # Before `atexit` functions, Python joins threads, one of which waits for the training's process.
        threading._register_atexit(self.stop)  # type: ignore[attr-defined]

    def stop(self) -> None:
        """The server ends: stop the training, which the next start resumes, and all threads that use the network."""
        self._ending.set()
        tasks.stop()
        if self._beginning is not None:
            self._beginning.join(ENOUGH)
        if self.follower is not None:
            self.follower.stop()
        self.board.stop()

    def _begin(self, follower: WeightReloader) -> None:
        """Warm up, look through the labels that came while the server was off, then follow what is new."""
        try:
            self.engine.warm_up()
            found = self.intake.reconcile().found
            if found:  # a folder that is served for the first time must not keep the machine busy unasked
                self.trainer.log.pass_over([entry.key for entry in found])
        except Exception:  # a store that is down, a full disk: the server answers all the same
            logger.exception("The labels of the datastore could not all be looked at")
        if not self._ending.is_set():
            follower.start()
            self.board.start()

    def submit(
        self, image_id: str, file: Path, info: Mapping[str, Any], *, tag: str = DefaultLabelTag.FINAL, by: str = ""
    ) -> None:
        """Store a label of an image; one with the tag `final` becomes a reference and training data.

        `info` is the label's metadata, `by` the user who submits it. RequestError as in `SubmissionService.submit`.
        """
        self.intake.submit(image_id, file, info, tag=tag, by=by)
        self.submitted()

    def submitted(self) -> None:
        """A label has come: make it a reference now."""
        if self.follower is not None:
            self.follower.wake()

    def adopt(self, image_id: str) -> None:
        """Take in a label that has reached the datastore by another way than `SubmissionService.submit`."""
        try:
            self.intake.adopt(image_id)
        except (RequestError, OSError) as error:
            logger.warning("The label of image %r cannot be used: %s", image_id, error)
        self.submitted()

    def withdraw(self, image_id: str) -> None:
        """The label of an image was removed."""
        self.ledger.withdraw(image_id)
        self.submitted()

    @property
    def warning(self) -> str | None:
        """Why the version that serves is not the one that was published; None if it is."""
        return self._served.warning if self.follower is None else self.follower.warning

    def _score(self, image_id: str) -> Scores:
        network = self.engine.network()
        # Not kept: a look through all images must not push out those that somebody works on.
        path, name = image_path(self.datastore, image_id), f"image {image_id!r}"
        image = read_image(path, name, self.engine.cache.budget).cut()

        def find(structure: str, query: ImageEmbedding) -> References | None:
            entries = self.submitted_cases.find(network, structure, image, image_id, [query], REFERENCES)
            return self.submitted_cases.encoded(network, entries) if entries else None

        return score_image(
            network.predictor,
            image,
            find,
            run=lambda compute: self.engine.run("score", RequestStatistics(), compute),
        )
