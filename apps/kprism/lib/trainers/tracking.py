# SPDX-License-Identifier: Apache-2.0
"""Logging a training to MLflow, if the conf key `tracking_uri` names an MLflow server or database.

MLflow is not a requirement of the app. Who wants it installs it in addition (`pip install mlflow-skinny`, and for a
database `sqlalchemy alembic`). A training is logged at its end, as one run: options, curves, Dice before and after, the
verdict, the report page. If MLflow cannot be reached, the training is published all the same.

The run is written with MLflow's own client. MONAI's MLFlowHandler does not fit: it sends one request in each training
step, out of the time budget; a server that is down would end the training; and MLFLOW_TRACKING_URI overrides the
address.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

EXPERIMENT = "K-Prism"
"""Name of the MLflow experiment of all runs."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
"""Kinds of addresses. MLflow itself no longer writes folders of files (file:)."""

_METRICS_PER_REQUEST = 1000  # the most that MLflow accepts

_TIMEOUT_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's settings, unless the user has set them: by default it retries a server that is down for two minutes."""


def check_tracking(uri: str) -> str:
    """The address; ValueError if it cannot be used or MLflow is not installed."""
    if not uri:
        return ""
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in SCHEMES:
        raise ValueError(
            f"--conf tracking_uri {uri}: expected the address of an MLflow server (http://HOST:5000) or a database "
            "(sqlite:////absolute/path/mlflow.db); MLflow no longer keeps runs in plain files"
        )
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError(
            f"--conf tracking_uri {uri}: MLflow is not installed; `.venv/bin/pip install mlflow-skinny sqlalchemy "
            "alembic` adds it to the environment of the server"
        )
    if scheme == "sqlite":
        file = Path(urlsplit(uri).path.removeprefix("/"))
        if file.is_dir() or not file.parent.is_dir():
            raise ValueError(f"--conf tracking_uri {uri}: {file} must be a file, or a new one in a folder that exists")
    return uri


def track(uri: str, options: Mapping[str, Any], metadata: Mapping[str, Any], log: Path, report: Path) -> str:
    """Log a training to MLflow; returns an empty text, or a message if that failed.

    `metadata` are those of the version; `log` has a JSON record for each step; `report` is the page.
    """
    if not uri:
        return ""
    try:
        _log_run(uri, options, metadata, log, report)
    except Exception as error:  # whatever is wrong with MLflow, the training is valid
        logger.exception("The training could not be logged to MLflow at %s", uri)
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        return f"it could not be logged to MLflow at {uri}: {reason}"
    return ""


def _log_run(uri: str, options: Mapping[str, Any], metadata: Mapping[str, Any], log: Path, report: Path) -> None:
    for name, value in _TIMEOUT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    existing = client.get_experiment_by_name(EXPERIMENT)
    experiment = existing.experiment_id if existing else client.create_experiment(EXPERIMENT, _artifact_location(uri))
    run = client.create_run(experiment, run_name=report.stem).info.run_id
    params = {**options, **{name: metadata[name] for name in ("parent", "steps", "minutes")}}
    tags = {
        "gate": metadata["verdict"],
        "cases": str(len(metadata["trained_on"])),
        "skipped": json.dumps(metadata["skipped"]),
    }
    client.log_batch(
        run,
        params=[Param(name, str(value)) for name, value in params.items()],
        tags=[RunTag(name, value[:5000]) for name, value in tags.items()],
    )
    now = round(1000 * time.time())
    metrics = [Metric(name, value, now, step) for name, value, step in _metrics(metadata, log)]
    for first in range(0, len(metrics), _METRICS_PER_REQUEST):
        client.log_batch(run, metrics=metrics[first : first + _METRICS_PER_REQUEST])
    client.log_artifact(run, str(report))
    client.set_terminated(run)


def _artifact_location(uri: str) -> str | None:
    """Beside an SQLite file, instead of the folder that the server runs from; an MLflow server has its own place."""
    parts = urlsplit(uri)
    return f"{Path(parts.path).parent}/mlflow-reports" if parts.scheme.startswith("sqlite") else None


def _metrics(metadata: Mapping[str, Any], log: Path) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every metric; those of the validation have the last step."""
    for line in log.read_text().splitlines() if log.exists() else ():
        record = json.loads(line)
        yield from (
            (f"train/{name}", float(value), int(record["step"]))
            for name, value in record.items()
            if name != "step" and math.isfinite(value)
        )
    for key, when in (("metrics_before", "before"), ("metrics", "after")):
        for name, value in metadata[key].items():
            yield f"dice {when}/{name.replace(' ', '/', 1)}", float(value), int(metadata["steps"])
