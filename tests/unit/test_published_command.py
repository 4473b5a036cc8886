# SPDX-License-Identifier: Apache-2.0
"""The command `train --recipe published`, from folders to a checkpoint that answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.live_server import free_port
from kprism_model.checkpoint import load_checkpoint
from kprism_model.cli.main import main
from kprism_model.predictor import Predictor
from kprism_model.published.training.curves import EXPERIMENT
from kprism_model.training import heads
from kprism_model.training.kinds import fit_kinds
from kprism_model.training.presence import fit_presence
from tests.unit.dataset_files import rectangle, write_dataset
from tests.unit.test_pack_training import BLOCKED

ROOT = Path(__file__).parents[2]
SIZE = 64
STEPS = 2 * 6
"""Two epochs of 18 slices and 4 pictures, four in a step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Volumes of three patients with two organs, and pictures of four."""
    folder = tmp_path_factory.mktemp("data")
    volumes = []
    for row in (2, 10, 20):
        volume = np.zeros((48, 64, 9), np.uint8)
        volume[row : row + 20, 10:40, 2:8] = 1
        volume[row : row + 10, 45:60, 4:7] = 2
        volumes.append(volume)
    grey = [(60 * volume + 10).astype(np.float32) for volume in volumes]
    organs = write_dataset(folder / "amos_ct", volumes, classes=["spleen", "liver"], images=grey, modality="CT")
    pictures = [rectangle((64, 48), slice(row, row + 20), slice(5, 30)) for row in (2, 10, 20, 30)]
    return [organs, write_dataset(folder / "isic2018_dermoscopy", pictures, classes=["skin lesion"])]


def words(data: list[Path], folder: Path, *more: object) -> list[str]:
    options = ["--preset", "tiny", "--size", SIZE, "--epochs", 2, "--batch", 4, "--device", "cpu"]
    places = ["--out", folder / "new", "--run-folder", folder / "run"]
    return [*map(str, ["train", "--recipe", "published", "--data", *data, *options, *places, *more])]


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted at the end looks at a few images."""
    monkeypatch.setattr(heads, "fit_presence", partial(fit_presence, batches=6))
    monkeypatch.setattr(heads, "fit_kinds", partial(fit_kinds, images=6))


def test_folders_become_a_checkpoint(data: list[Path], tmp_path: Path, short_fits: None) -> None:
    """With curves for TensorBoard and MLflow, and a checkpoint on the way."""
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    assert main(words(data, tmp_path, "--checkpoint-every", 1, "--mlflow", uri)) == 0
    checkpoint = load_checkpoint(tmp_path / "new")
    assert checkpoint.registry.names == ("spleen", "liver", "skin lesion")
    training = checkpoint.metadata["training"]
    assert (training["steps"], training["epochs"], training["images"], training["slices"]) == (STEPS, 2, 48, 22)
    assert training["recipe"]["learning_rate"] == 1e-4 and training["recipe"]["mode_shares"] == [0.3, 0.4, 0.3]
    assert {part["name"]: (part["cases"], part["weight"]) for part in training["datasets"]} == {
        "amos_ct": (3, 0.05),
        "isic2018_dermoscopy": (4, 0.08),
    }
    assert set(training["presence"]) == {"before", "after"} and set(training["kinds"]) == {"known", "unknown"}
    assert checkpoint.model.config.kinds == ("CT", "photograph") and checkpoint.model.config.native_size == SIZE
    predictor = Predictor(checkpoint.model, checkpoint.registry)
    predictor.set_image(np.random.default_rng(0).random((50, 40)))
    assert predictor.predict(class_name="liver").mask.shape == (50, 40)
    assert load_checkpoint(tmp_path / "new-epoch1").metadata["training"]["steps"] == STEPS // 2
    assert not (tmp_path / "new-epoch2.json").exists()

    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(STEPS))
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in curves.Scalars("loss")]
    assert losses == [(record["step"], pytest.approx(record["loss"], rel=1e-5)) for record in records]
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["epochs"] == "2"
    mean = np.mean([record["loss"] for record in records])
    assert run.data.metrics["train/loss"] == pytest.approx(mean, rel=1e-4)

    assert main(words(data, tmp_path, "--mlflow", uri)) == 0  # a finished training writes its result again
    assert load_checkpoint(tmp_path / "new").metadata["training"]["steps"] == STEPS
    assert len(client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])) == 1


@pytest.fixture(scope="module")
def finished(data: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "fit_presence", partial(fit_presence, batches=2))
        patch.setattr(heads, "fit_kinds", partial(fit_kinds, images=6))
        assert main(words(data, folder, "--epochs", 1, "--iterations", 1)) == 0
    return folder


def stamps(folder: Path) -> dict[Path, int]:
    """What tells whether slices and state were written again."""
    files = [*folder.rglob("*.npy"), *folder.rglob("state*")]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "3"], "its recipe epochs is 1, not 3"),
        (["--batch", "2"], "its recipe batch is 4, not 2"),
        (["--size", "96"], "its recipe size is 64, not 96"),
        (["--seed", "1"], "its seed is 0, not 1"),
        (["--data", "amos_ct"], "its data sets are amos_ct, isic2018_dermoscopy, not amos_ct"),
        (["--weight", "amos_ct=1"], "its shares amos_ct is"),
    ],
)
def test_another_run_is_refused_before_the_slices_of_the_first_are_touched(
    data: list[Path], finished: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(finished)
    given = [str(data[0]) if word == "amos_ct" else word for word in more]
    assert main(words(data, finished, "--epochs", "1", "--iterations", "1", *given)) == 2
    error = capsys.readouterr().err
    assert "belongs to another run" in error and message in error and "learning_rate" not in error
    assert stamps(finished) == before


def test_a_run_is_not_resumed_on_other_lists(
    data: list[Path], tmp_path: Path, short_fits: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many slices, but of other cases: what was drawn anew for testing may have been trained on."""
    folder = tmp_path / "isic2018_dermoscopy"
    shutil.copytree(data[1], folder)
    described = json.loads((folder / "dataset.json").read_text())
    cases = described["training"]
    for held, training in ((cases[3], cases[:3]), (cases[0], cases[1:])):
        described |= {"training": training, "test": [held]}
        (folder / "dataset.json").write_text(json.dumps(described))
        status = main(words([data[0], folder], tmp_path, "--epochs", 1, "--iterations", 1))
        assert status == (0 if held is cases[3] else 2)
    error = capsys.readouterr().err
    assert "its data isic2018_dermoscopy is 3 slices of 3 cases," in error and "amos_ct is" not in error


def test_a_plan_of_a_run_that_has_begun_is_printed(
    data: list[Path], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(data, finished, "--epochs", 1, "--iterations", 1, "--plan")) == 0
    assert "steps   6: 1 epochs of 6 steps of 4 images of 64 x 64 pixels" in capsys.readouterr().out


def test_a_training_goes_on_without_mlflow(
    data: list[Path], tmp_path: Path, short_fits: None, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    assert main(words(data, tmp_path, "--iterations", 1, "--mlflow", nobody)) == 0
    assert f"The training goes on without MLflow at {nobody}" in caplog.text
    assert load_checkpoint(tmp_path / "new").metadata["training"]["recipe"]["iterations"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weight", "amos_mr=1"], "--weight names amos_mr, but the data sets are amos_ct, isic2018_dermoscopy"),
        (["--size", "100"], "size must be a multiple of 32, got 100"),
        (["--images-at-once", "3"], "4 images of a process cannot be divided into passes of 3"),
        (["--sync-batch-norm"], "on GPUs only"),
        (["--out", "weights.pth"], "pickled checkpoints can run code"),
        (["--preset", "huge"], "unknown preset 'huge'"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    data: list[Path], tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(data, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_set_that_is_only_measured_is_refused(
    data: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acdc = write_dataset(tmp_path / "acdc_mr", [rectangle((64, 64), slice(5, 30), slice(5, 30))], classes=["a"])
    assert main(words([*data, acdc], tmp_path)) == 2
    assert "data set acdc_mr is only measured (external): leave it out" in capsys.readouterr().err


def test_the_plan_comes_before_the_slices_and_the_training(
    data: list[Path], tmp_path: Path, short_fits: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(data, tmp_path, "--plan")) == 0
    printed = capsys.readouterr().out
    assert "~: estimated from the label maps of a few cases" in printed and "hours with 8 processes" in printed
    assert not (tmp_path / "run" / "slices").exists() and not (tmp_path / "new.json").exists()
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (planned["slices"], planned["steps"]) == (22, STEPS)
    assert planned["seconds"] > 0 and planned["hours"]["1"] == pytest.approx(STEPS * planned["seconds"] / 3600)

    assert main(words(data, tmp_path)) == 0
    exact = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [part["stored"] for part in exact["sets"]] == [True, True]
    assert exact["missing_bytes"] == exact["other_bytes"] < planned["missing_bytes"]
    training = load_checkpoint(tmp_path / "new").metadata["training"]
    assert (training["slices"], training["steps"]) == (exact["slices"], exact["steps"])


def test_only_what_the_experiment_uses_is_trained(tmp_path: Path, short_fits: None) -> None:
    """Of LiTS the tumour alone, and benign and malignant lesions as one structure."""
    livers, lesions = [], []
    for row in (2, 10, 20):
        volume = np.zeros((48, 64, 9), np.uint8)
        volume[row : row + 20, 10:40] = 1
        volume[row : row + 10, 20:35, 4:7] = 2
        livers.append(volume)
        lesions.append((1 + row % 4 // 2) * rectangle((64, 48), slice(row, row + 20), slice(5, 30)))
    grey = [(60 * volume + 10).astype(np.float32) for volume in livers]
    lits = write_dataset(tmp_path / "lits_ct", livers, classes=["liver", "liver tumour"], images=grey, modality="CT")
    busi = write_dataset(tmp_path / "busi_us", lesions, classes=["benign lesion", "malignant lesion"])
    assert main(words([lits, busi], tmp_path)) == 0
    checkpoint = load_checkpoint(tmp_path / "new")
    assert checkpoint.registry.names == ("liver tumour", "breast lesion")
    assert checkpoint.metadata["training"]["slices"] == 3 * 3 + 3


def test_two_editions_of_the_same_patients_are_refused(
    data: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kidney = rectangle((64, 64), slice(5, 30), slice(5, 30))
    both = [write_dataset(tmp_path / name, [kidney], classes=["kidney tumour"]) for name in ("kits19_ct", "kits23_ct")]
    assert main(words(both, tmp_path)) == 2
    assert "kits19_ct and kits23_ct have 210 patients in common: train on one of them" in capsys.readouterr().err


def test_two_processes_stop_and_go_on(data: list[Path], tmp_path: Path) -> None:
    """As in the documentation: torchrun, stopped by SIGTERM, started again."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "kprism_model", *words(data, tmp_path, "--loaders", 1)]
    places = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = tmp_path / "run" / "log.jsonl"
    first = subprocess.Popen(command, env=places, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 300
    while time.monotonic() < end and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=120)
    done = json.loads((tmp_path / "run" / "state.json").read_text())["step"]
    assert 3 <= done < STEPS and f"stopped after step {done} of {STEPS}" in out
    second = subprocess.run(command, env=places, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(STEPS))
    assert load_checkpoint(tmp_path / "new").metadata["training"]["processes"] == 2


def test_the_benchmark_runs_where_only_the_training_packages_are(tmp_path: Path) -> None:
    """On a GPU machine without MONAI, ignite, nibabel and others."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED}))")
    places = {**os.environ, "PYTHONPATH": f"{blocked}:{ROOT}", "OMP_NUM_THREADS": "1"}
    options = ["--preset", "tiny", "--size", "64", "--batch", "2", "--seconds", "0", "--threads", "1"]
    options += ["--device", "cpu"]
    command = [sys.executable, "-m", "benchmarks.published_training", "--out", str(tmp_path / "found.json"), *options]
    done = subprocess.run(command, env=places, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["results"]
    assert found["steps of each"] == 1 and set(found["masks a second"]) == {"published", "before"}
    assert 0 <= found["waiting"] <= 1
