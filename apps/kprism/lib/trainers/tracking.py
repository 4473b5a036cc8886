# SPDX-License-Identifier: Apache-2.0
"""Telling MLflow about a training, if the conf key `tracking_uri` names a server or database of it.

MLflow is no requirement of the app: whoever wants it installs it beside it (`pip install mlflow-skinny`, and for a
database `sqlalchemy alembic`). It is told at the end, in one run: options, curves, Dice before and after, the verdict,
the report page. If it cannot be reached the training counts all the same.
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
"""Name of the experiment that the runs belong to."""

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
"""Kinds of addresses; MLflow's folders of files (file:) are no longer written by itself."""

_AT_ONCE = 1000  # metrics that MLflow takes in one request

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own settings unless the user has set them: by default it tries a server that is down for two minutes."""


def check_tracking(uri: str) -> str:
    """The address, if it can be used; ValueError says what is wrong with it or missing here."""
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


def track(uri: str, options: Mapping[str, Any], facts: Mapping[str, Any], log: Path, report: Path) -> str:
    """Tell MLflow about a training; returns an empty text or a sentence that says why it could not be told.

    `facts` are those of the version; `log` has a JSON record for each step; `report` is the page.
    """
    if not uri:
        return ""
    try:
        _tell(uri, options, facts, log, report)
    except Exception as error:  # whatever is wrong with it, the training is not
        logger.exception("MLflow at %s could not be told about the training", uri)
        return f"MLflow at {uri} could not be told about it: {str(error).splitlines()[0] if str(error) else error!r}"
    return ""


def _tell(uri: str, options: Mapping[str, Any], facts: Mapping[str, Any], log: Path, report: Path) -> None:
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, _place_of_files(uri))
    run = client.create_run(experiment, run_name=report.stem).info.run_id
    params = {**options, **{name: facts[name] for name in ("parent", "steps", "share_of_new_weights")}}
    tags = {"gate": facts["gate"], "cases": str(len(facts["trained_on"])), "skipped": json.dumps(facts["skipped"])}
    client.log_batch(
        run,
        params=[Param(name, str(value)) for name, value in params.items()],
        tags=[RunTag(name, value[:5000]) for name, value in tags.items()],
    )
    now = round(1000 * time.time())
    metrics = [Metric(name, value, now, step) for name, value, step in _metrics(facts, log)]
    for first in range(0, len(metrics), _AT_ONCE):
        client.log_batch(run, metrics=metrics[first : first + _AT_ONCE])
    client.log_artifact(run, str(report))
    client.set_terminated(run)


def _place_of_files(uri: str) -> str | None:
    """Reports lie beside an SQLite file, not in whatever folder the server runs from; a server knows a place itself."""
    parts = urlsplit(uri)
    return f"{Path(parts.path).parent}/mlflow-reports" if parts.scheme.startswith("sqlite") else None


def _metrics(facts: Mapping[str, Any], log: Path) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every figure; those of the validation have the last step."""
    for line in log.read_text().splitlines() if log.exists() else ():
        record = json.loads(line)
        yield from (
            (f"train/{name}", float(value), int(record["step"]))
            for name, value in record.items()
            if name != "step" and math.isfinite(value)
        )
    for key, when in (("metrics_before", "before"), ("metrics", "after")):
        for name, value in facts[key].items():
            yield f"dice {when}/{name.replace(' ', '/', 1)}", float(value), int(facts["steps"])
