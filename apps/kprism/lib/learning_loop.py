# SPDX-License-Identifier: Apache-2.0
"""The parts that learn from submitted labels, put together: submissions, versions, references, training, strategies.

Every process of the app creates these parts; only the server starts their threads (`start`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib.configs.app_config import AppConfig
from lib.engine import Engine
from lib.errors import RequestError
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.mapped import in_memory, mapped_in
from lib.learning.earlier_structures import EarlierStructures
from lib.learning.reference_cache import ReferenceCache
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission, SubmissionStore
from lib.learning.submitted_references import SubmittedReferences
from lib.learning.training_schedule import TrainingSchedule
from lib.learning.versions import Versions
from lib.learning.weight_reloader import WeightReloader, networks_of
from lib.request_statistics import RequestStatistics
from lib.trainers import tasks
from lib.trainers.active_learner import ActiveLearner
from lib.trainers.processes import announce_server

logger = logging.getLogger(__name__)

TRAINER = "kprism"
"""Name of the train task."""

SETTLING_SECONDS = 0.2
"""Editors write a file in several steps."""

STOP_TIMEOUT_SECONDS = 10.0
"""Seconds that `stop` waits for a thread that is still starting."""


class LearningLoop:
    """The parts, with the state folder of `config`; CheckpointError (a ValueError) if no version can be loaded."""

    def __init__(self, config: AppConfig, datastore: Datastore) -> None:
        self.config, self.datastore = config, datastore
        self.versions = Versions(config.state / "versions", config.model_path, keep=config.keep_versions)
        self._stamp = self.versions.stamp()  # before loading, so that a version published meanwhile is noticed
        self._served = self.versions.load(device=config.device)
        networks = networks_of(self._served, config.device)
        on_disk = config.image_mb > 0
        self.engine = Engine(
            networks,
            config.cache_mb << 20,
            config.image_mb << 20 if on_disk else None,
            mapped_in(config.state / "images") if on_disk else in_memory,
        )
        self.submission_store = SubmissionStore(config.state / "intake")
        oldest_first = sorted(self.submission_store.submissions(), key=lambda entry: entry.at)
        submitted = (name for entry in oldest_first for name in entry.structures)
        self.label_registry = LabelRegistry([*networks.semantic_classes.names, *config.labels, *submitted])
        self.submissions = SubmissionService(
            self.submission_store,
            datastore,
            self.label_registry,
            unknown=config.unknown_structures,
            patients=config.patients,
            read=self.engine.image,
        )
        self.reference_cache = ReferenceCache(
            config.state / "bank",
            self.submissions.load,
            run=lambda compute: self.engine.run("encode", RequestStatistics(), compute),
        )
        self.submitted_references = SubmittedReferences(self.reference_cache, self.submissions, self.engine)
        self.earlier_structures = EarlierStructures(self.versions, self.submission_store, self.label_registry)
        self.trainer = self._create_trainer()
        self.trainers = {TRAINER: self.trainer}
        self.reloader: WeightReloader | None = None
        self._starting: Thread | None = None
        self._found: list[str] | None = []  # keys of labels that came while the server was off, until all are known
        self._stopping = Event()
        self._names_changed, self._reconciling = Event(), Lock()

    def _create_trainer(self) -> ActiveLearner:
        return ActiveLearner(
            self.submissions,
            self.versions,
            self.config.state / "training",
            self.config.device,
            minutes=self.config.train_minutes,
            processes=self.config.train_processes,
            tracking_uri=self.config.tracking_uri,
        )

    def start(self) -> None:
        """In the server, before it answers: finish interrupted submissions, then start the background threads."""
        self.submissions.recover()
        announce_server()
        schedule = TrainingSchedule(
            self.trainer.log,
            self.submission_store.submissions,
            start=lambda options: tasks.start({**options, "model": TRAINER}),
            options=self.trainer.request,
            status=tasks.status,
            every=self.config.train_after,
        )
        self.reloader = WeightReloader(
            self.versions,
            self.engine,
            self.reference_cache,
            self._submissions_now,
            schedule,
            device=self.config.device,
            served=self._served,
            stamp=self._stamp,
        )
        self._starting = Thread(target=self._start_threads, args=(self.reloader,), name="start", daemon=True)
        self._starting.start()
        # Before `atexit` functions, Python joins threads, one of which waits for the training's process.
        threading._register_atexit(self.stop)  # type: ignore[attr-defined]

    def stop(self) -> None:
        """When the server ends: stop the training (the next start resumes it) and all threads that use the network."""
        self._stopping.set()
        if self.reloader is not None:
            self.reloader.finish()  # else it would take the end of the training for a user's wish
        tasks.stop()
        if self._starting is not None:
            self._starting.join(STOP_TIMEOUT_SECONDS)
        if self.reloader is not None:
            self.reloader.stop()

    def _start_threads(self, reloader: WeightReloader) -> None:
        """Warm up, submit the labels that came while the server was off, then start the other threads."""
        try:
            self.engine.warm_up()
            with self._reconciling:
                new = [entry.key for entry in self.submissions.reconcile().submissions]
            found, self._found = [*new, *(self._found or ())], None
            if found:  # a folder that is served for the first time must not start a training
                self.trainer.log.mark_as_seen(found)
        except Exception:  # a store that is down, a full disk: the server answers nevertheless
            logger.exception("Not all labels of the datastore could be read")
        if not self._stopping.is_set():
            reloader.start()

    def submit(
        self, image_id: str, file: Path, info: Mapping[str, Any], *, tag: str = DefaultLabelTag.FINAL, by: str = ""
    ) -> Submission | None:
        """Store a label of an image; one with the tag `final` becomes a reference and training data.

        `info` is the label's metadata, `by` the user who submits it. RequestError as in `SubmissionService.submit`.
        """
        submission = self.submissions.submit(image_id, file, info, tag=tag, by=by)
        self.submitted()
        return submission

    def names_changed(self) -> None:
        """Read the labels again soon that somebody has given other names in the datastore; in a thread of its own."""
        if not self._names_changed.is_set():  # else one that is about to begin sees this change too
            self._names_changed.set()
            Thread(target=self._read_again, name="names", daemon=True).start()

    def _read_again(self) -> None:
        with self._reconciling:
            self._stopping.wait(SETTLING_SECONDS)
            self._names_changed.clear()
            if self._stopping.is_set():
                return
            try:
                self.submissions.reconcile()
            except Exception:  # a store that is down, a full disk: the labels stay as they were read
                logger.exception("The labels could not be read again")
        self.submitted()

    def submitted(self) -> None:
        """After a label was submitted: encode it as a reference now."""
        if self.reloader is not None:
            self.reloader.wake()

    def adopt(self, image_id: str) -> None:
        """Submit a label that reached the datastore in another way than by `SubmissionService.submit`."""
        try:
            submission = self.submissions.adopt(image_id)
            if submission is not None and self._found is not None:
                self._found.append(submission.key)
        except (RequestError, OSError) as error:
            logger.warning("The label of image %r cannot be used: %s", image_id, error)
        self.submitted()

    def withdraw(self, image_id: str) -> None:
        """Remove the label of an image."""
        self.submissions.withdraw(image_id)
        self.submitted()

    def _submissions_now(self) -> list[Submission]:
        """All submissions, after another try at the labels that a passing error kept out."""
        for image_id in self.submissions.postponed():
            self.adopt(image_id)
        return self.submission_store.submissions()

    @property
    def warning(self) -> str | None:
        """Why the serving version is not the one that was published; None if it is."""
        return self._served.warning if self.reloader is None else self.reloader.warning
