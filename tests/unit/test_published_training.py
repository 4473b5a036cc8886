# SPDX-License-Identifier: Apache-2.0
"""The loop of the published training: killed and resumed, divided among processes, measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kprism_model.published.training.measuring import measure
from kprism_model.published.training.run import RunOptions, parts_of_batch
from tests.unit import published_runs
from tests.unit.published_runs import RECIPE, training

ROOT = Path(__file__).parents[2]
STEPS = 14
"""Two epochs of 27 slices, four in a step."""


def start(folder: Path, *, loaders: int = 0, save_minutes: float = 0.0) -> subprocess.Popen[str]:
    """A training in a process of its own, in a group of its own."""
    words = [sys.executable, published_runs.__file__, "train", str(folder), str(loaders), str(save_minutes)]
    return subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a training printed that ended by itself."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out.strip()


def wait_for(folder: Path, steps: int) -> None:
    """Until the log has so many steps."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if (folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text().count("\n") >= steps:
            return
        time.sleep(0.01)
    pytest.fail(f"{folder} has no {steps} steps")


def log(folder: Path) -> list[str]:
    """The lines of the log."""
    return (folder / "log.jsonl").read_text().splitlines()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the state: network, statistics, moments."""
    return load_file(next(folder.glob("state-*.safetensors")))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish(start(folder, save_minutes=60)) == f"{STEPS} False"
    assert len(log(folder)) == STEPS
    return folder


@pytest.mark.parametrize(("loaders", "save_minutes"), [(1, 0.0), (0, 0.01)])
def test_a_killed_and_resumed_run_is_the_unbroken_one(
    unbroken: Path, tmp_path: Path, loaders: int, save_minutes: float
) -> None:
    """Killed twice without a warning; steps since the last saving are made again. All losses and weights are equal."""
    for steps in (4, 9):
        process = start(tmp_path, loaders=loaders, save_minutes=save_minutes)
        wait_for(tmp_path, steps)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    assert finish(start(tmp_path, loaders=loaders, save_minutes=save_minutes)) == f"{STEPS} False"
    assert log(tmp_path) == log(unbroken)
    assert [json.loads(line)["step"] for line in log(tmp_path)] == list(range(STEPS))
    found, expected = weights(tmp_path), weights(unbroken)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_that_is_asked_to_stop_saves_its_state_first(unbroken: Path, tmp_path: Path) -> None:
    """SIGTERM reaches the processes that make the batches, too, as a scheduler sends it."""
    process = start(tmp_path, loaders=2, save_minutes=60)
    wait_for(tmp_path, 5)
    os.killpg(process.pid, signal.SIGTERM)
    steps, stopped = finish(process).split()
    assert stopped == "True" and 5 <= int(steps) < STEPS
    assert json.loads((tmp_path / "state.json").read_text())["step"] == int(steps) == len(log(tmp_path))
    assert finish(start(tmp_path, save_minutes=60)) == f"{STEPS} False"
    assert log(tmp_path) == log(unbroken)


def test_a_finished_run_makes_no_more_steps(unbroken: Path) -> None:
    before = log(unbroken)
    assert finish(start(unbroken)) == f"{STEPS} False"
    assert log(unbroken) == before


def test_the_log_has_the_rate_and_the_mode_of_each_step(unbroken: Path, tmp_path: Path) -> None:
    made = training(tmp_path)
    for line in log(unbroken):
        record = json.loads(line)
        mode, epoch = made.sampler.mode(record["step"]), record["step"] // made.steps_per_epoch
        assert set(record) == {"step", "rate", "loss", mode, f"{mode}_last"}
        assert record["rate"] == pytest.approx(RECIPE.rate_at(epoch), abs=1e-6)
        assert 20 < record["loss"] < 100 and 0 <= record[mode] <= 1


def test_epochs_end_with_a_call(tmp_path: Path) -> None:
    made = training(tmp_path, replace(RECIPE, iterations=1))
    ends: list[tuple[int, int]] = []
    made._after_epoch = lambda given: ends.append((given.epoch, given.step))
    assert len(list(made.steps())) == STEPS
    assert ends == [(1, 7), (2, 14)]
    model = made.network()
    assert not model.training and made.model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "belongs to another run: its recipe"),
        ({"size": 96}, "holds slices of 64 pixels"),
        ({"iterations": 2}, "belongs to another run: its recipe"),
    ],
)
def test_a_state_of_another_run_is_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    made = training(tmp_path)
    made.save()
    with pytest.raises(ValueError, match=message):
        training(tmp_path, replace(RECIPE, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "workers", "images", "expected"),
    [(16, 1, None, (1, 16)), (16, 8, None, (1, 2)), (16, 2, 2, (4, 2)), (16, 16, 1, (1, 1)), (12, 3, 4, (1, 4))],
)
def test_the_batch_is_the_same_for_any_number_of_processes(
    batch: int, workers: int, images: int | None, expected: tuple[int, int]
) -> None:
    passes, at_once = parts_of_batch(batch, workers, images)
    assert (passes, at_once) == expected and passes * at_once * workers == batch


@pytest.mark.parametrize(
    ("batch", "workers", "images", "message"),
    [
        (16, 3, None, "a batch of 16 images cannot be divided among 3 processes"),
        (4, 8, None, "a batch of 4 images cannot be divided among 8 processes"),
        (16, 2, 3, "8 images of a process cannot be divided into passes of 3"),
        (16, 2, 16, "8 images of a process cannot be divided into passes of 16"),
        (16, 2, -1, "8 images of a process cannot be divided into passes of -1"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(batch: int, workers: int, images: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts_of_batch(batch, workers, images)


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_statistics_are_synchronized_on_gpus_only(device: str) -> None:
    with pytest.raises(ValueError, match=f"on GPUs only, not on '{device}': leave --sync-batch-norm out"):
        RunOptions(device=device, sync_batch_norm=True)
    assert RunOptions(device="cuda", sync_batch_norm=True).sync_batch_norm


def test_measuring_leaves_no_trace(tmp_path: Path) -> None:
    recipe = replace(RECIPE, iterations=1)
    made, other = training(tmp_path / "measured", recipe), training(tmp_path / "other", recipe)
    cost = measure(made, rounds=1)
    assert cost.seconds > 0 and cost.peak_bytes > 8 * sum(p.numel() for p in made.model.parameters())
    assert made.step == 0 and not made.optimizer.state
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]), name
    assert all(parameter.grad is None for parameter in made.model.parameters())
    with pytest.raises(ValueError, match="0 rounds"):
        measure(made, rounds=0)


def test_fewer_images_at_once_are_other_batches_of_the_same_images(tmp_path: Path) -> None:
    made = training(tmp_path, options=RunOptions(precision="float32", images_at_once=2))
    whole, parts = made.sampler.batch(3, range(4)), made.batches(3)
    assert torch.equal(torch.cat([part.images[:2] for part in parts]), whole.images[:4])
