# SPDX-License-Identifier: Apache-2.0
"""What can be watched of a training: a progress bar by steps, TensorBoard curves, and MLflow if it is asked for."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kprism_model.files import write_bytes
from kprism_model.published.training.run import PublishedTraining
from kprism_model.training.loop import HANDLER_PACKAGES, attach_tensorboard, run_engine, training_engine

logger = logging.getLogger(__name__)

EXPERIMENT = "K-Prism, published recipe"
RUN_NAME = "mlflow-run.txt"
"""File in the folder of a training with the number of its MLflow run, which a resumed training goes on with."""

_TIMEOUT_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's settings, unless the user has set them: by default it retries a server that is down for two minutes."""


def watch(training: PublishedTraining, tracker: MlflowTracker | None = None, *, progress: bool = True) -> None:
    """Train to the end, and show it: the first process alone does."""
    if training.workers.rank:
        for _ in training.steps():
            pass
        return
    bar = _Bar(training, progress)
    missing = [name for name in HANDLER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        logger.warning("No TensorBoard curves, because these are missing: %s", ", ".join(missing))
        for record in training.steps():
            _show(record, bar, tracker)
    else:
        from ignite.engine import Events

        engine: Any = training_engine()
        attach_tensorboard(engine, training.folder / "tensorboard")
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: _show(engine.state.output, bar, tracker))
        run_engine(engine, training)
    bar.close()


def _show(record: Mapping[str, float], bar: _Bar, tracker: MlflowTracker | None) -> None:
    bar.update(record)
    if tracker is not None:
        tracker.add(record)


class _Bar:
    """Steps done, the remaining time, the loss, and how long batches are waited for."""

    def __init__(self, training: PublishedTraining, shown: bool) -> None:
        self._training = training
        self._bar: Any = None
        if shown and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=training.steps_in_all, initial=training.step, unit="step", mininterval=10)

    def update(self, record: Mapping[str, float]) -> None:
        """Count a step."""
        if self._bar is not None:
            waiting = f"waits for data {self._training.waiting_share:.1%}"
            self._bar.set_postfix_str(f"loss {record['loss']:.3f}  {waiting}", refresh=False)
            self._bar.update(1)

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.close()


def check_mlflow(uri: str) -> None:
    """ValueError if MLflow is asked for and not installed."""
    if uri and importlib.util.find_spec("mlflow") is None:
        raise ValueError(f"--mlflow {uri}: MLflow is not installed; `pip install mlflow-skinny` adds it")


class MlflowTracker:
    """Sends the mean loss and Dice of every `every` steps to the MLflow server or database `uri`.

    A server that cannot be reached is reported once and does not stop the training.
    """

    def __init__(self, uri: str, folder: Path, parameters: Mapping[str, Any], every: int = 100) -> None:
        self._uri, self._every = uri, every
        self._sums: dict[str, list[float]] = {}
        self._count = 0
        self._client: Any = None
        self._run = ""
        try:
            self._start(folder, parameters)
        except Exception as error:  # whatever is wrong with MLflow, the training is valid
            self._give_up(error)

    def add(self, record: Mapping[str, float]) -> None:
        """Take the record of a step."""
        for name, value in record.items():
            if name != "step":
                self._sums.setdefault(name, []).append(value)
        self._count += 1
        if self._count >= self._every:
            self.send(int(record["step"]))

    def send(self, step: int) -> None:
        """Send the means of the steps since the last time."""
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._sums, self._count = {}, 0
        if self._client is None:
            return
        try:
            for name, value in means.items():
                self._client.log_metric(self._run, f"train/{name}", value, step=step)
        except Exception as error:
            self._give_up(error)

    def end(self, step: int, *, finished: bool) -> None:
        """Send what is left; a run that is to be resumed stays open."""
        self.send(step)
        if self._client is not None and finished:
            try:
                self._client.set_terminated(self._run)
            except Exception as error:
                self._give_up(error)

    def _start(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        for name, value in _TIMEOUT_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self._uri)
        note = folder / RUN_NAME
        if note.exists():
            self._run = note.read_text(encoding="utf-8").strip()
        else:
            existing = client.get_experiment_by_name(EXPERIMENT)
            experiment = existing.experiment_id if existing else client.create_experiment(EXPERIMENT)
            self._run = client.create_run(experiment, run_name=folder.name).info.run_id
            for name, value in parameters.items():
                client.log_param(self._run, name, str(value))
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(note, self._run.encode())
        self._client = client

    def _give_up(self, error: Exception) -> None:
        self._client = None
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        logger.warning("The training goes on without MLflow at %s: %s", self._uri, reason)
