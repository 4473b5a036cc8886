# SPDX-License-Identifier: Apache-2.0
"""MLflow: what is logged, and the messages if it is missing or cannot be reached."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from benchmarks.live_server import free_port
from lib.trainers.tracking import EXPERIMENT, check_tracking, track

METADATA: dict[str, Any] = {
    "trained_on": ["a", "b"],
    "skipped": {"c": "image 'c' is not in this datastore"},
    "parent": 3,
    "steps": 2,
    "minutes": 1.5,
    "verdict": "left lung (semantic) 0.520 (shipped weights: 0.500)",
    "metrics_before": {"semantic left lung": 0.5},
    "metrics": {"semantic left lung": 0.52},
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A log of two steps and a report."""
    records = [{"step": 0, "loss": 2.5, "semantic": float("nan")}, {"step": 1, "loss": 1.5, "semantic": 0.4}]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (tmp_path / "version-4.html").write_text("<p>report</p>")
    return tmp_path / "log.jsonl", tmp_path / "version-4.html"


def test_addresses_that_cannot_be_used_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_tracking("") == ""
    with pytest.raises(ValueError, match=r"--conf tracking_uri file:///mlruns: .* no longer keeps runs in plain files"):
        check_tracking("file:///mlruns")
    for path in (tmp_path, tmp_path / "missing" / "mlflow.db"):
        with pytest.raises(ValueError, match=rf"--conf tracking_uri sqlite:///{path}: {path} must be a file"):
            check_tracking(f"sqlite:///{path}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--conf tracking_uri http://host:5000: MLflow is not installed; .*pip"):
        check_tracking("http://host:5000")


def test_a_failure_is_reported_and_does_no_harm(files: tuple[Path, Path]) -> None:
    assert track("", {}, METADATA, *files) == ""
    nobody = f"http://127.0.0.1:{free_port()}"
    assert track(nobody, {}, METADATA, *files).startswith(f"it could not be logged to MLflow at {nobody}: ")


def test_a_training_is_logged_as_a_run(tmp_path: Path, files: tuple[Path, Path]) -> None:
    uri = check_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert track(uri, {"learning_rate": 3e-4, "in_context": True}, METADATA, *files) == ""
    assert (
        track(uri, {"learning_rate": 3e-4, "in_context": True}, METADATA, *files) == ""
    )  # the experiment is there by now
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    run = runs[0]
    assert run.info.run_name == "version-4"
    assert (run.data.params["learning_rate"], run.data.params["parent"]) == ("0.0003", "3")
    assert run.data.tags["gate"] == METADATA["verdict"] and run.data.tags["cases"] == "2"
    assert run.data.metrics["dice before/semantic/left lung"] == 0.5
    assert run.data.metrics["dice after/semantic/left lung"] == 0.52
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(0, 2.5), (1, 1.5)]
    assert len(client.get_metric_history(run.info.run_id, "train/semantic")) == 1  # what is not a number is left out
    assert list((tmp_path / "mlflow-reports").rglob("version-4.html"))
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["version-4.html"]
