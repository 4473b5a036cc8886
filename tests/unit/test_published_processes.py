# SPDX-License-Identifier: Apache-2.0
"""The published training in two processes of torchrun: the same gradients as in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kprism_model.training.schedule import MODES
from tests.unit import published_runs

ROOT = Path(__file__).parents[2]
SCRIPT = Path(published_runs.__file__)

Gradients = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Gradients:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = published_runs.gradients(tmp_path_factory.mktemp("one"))
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> Gradients:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*torchrun, str(SCRIPT), "gradients", str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Gradients = {}
    for name, value in load_file(folder / "gradients.safetensors").items():
        case, _, parameter = name.partition("/")
        found.setdefault(case, {})[parameter] = value
    return found


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of two gradients, relative to the largest of their values."""
    assert first.keys() == second.keys()
    names = first.keys() - {"loss"}
    return max(float((first[n] - second[n]).abs().max()) for n in names) / max(
        float(first[n].abs().max()) for n in names
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("how", "compared_with", "tolerance"),
    [
        ("frozen", "frozen", 1e-5),
        ("accumulated", "frozen", 1e-5),
        ("accumulated", "accumulated", 1e-6),
        ("recomputed", "frozen", 1e-5),
        ("double", "double", 1e-12),
    ],
)
def test_two_processes_have_the_gradients_of_one(
    one: Gradients, two: Gradients, mode: str, how: str, compared_with: str, tolerance: float
) -> None:
    """With the statistics of batch normalization frozen. "accumulated": four passes of one image instead of two."""
    whole = one[f"{mode} {compared_with}"]
    assert largest_difference(whole, two[f"{mode} {how}"]) < tolerance
    assert float(two[f"{mode} {how}"]["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_in_training_each_process_normalizes_by_its_own_images(one: Gradients, two: Gradients, mode: str) -> None:
    """With two images in a process, gradients differ by a quarter of their size and more; on GPUs statistics can be
    synchronized."""
    difference = largest_difference(one[f"{mode} training"], two[f"{mode} training"])
    print(f"{mode}: largest difference {difference:.3f} of the largest gradient")
    assert 1e-3 < difference < 2
    assert float(two[f"{mode} training"]["loss"]) == pytest.approx(float(one[f"{mode} training"]["loss"]), rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_has_the_mean_of_the_processes_statistics(two: Gradients, folder: Path, mode: str) -> None:
    found = [load_file(folder / str(rank) / f"statistics of {mode}.safetensors") for rank in range(2)]
    assert not torch.equal(found[0]["own"], found[1]["own"])
    mean = (found[0]["own"] + found[1]["own"]) / 2
    assert torch.equal(found[0]["mean"], mean) and torch.equal(found[1]["mean"], mean)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("processes", [1, 2])
def test_recomputing_activations_changes_no_gradient(one: Gradients, two: Gradients, mode: str, processes: int) -> None:
    found = one if processes == 1 else two
    kept, recomputed = found[f"{mode} frozen"], found[f"{mode} recomputed"]
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains_what_it_uses(one: Gradients, mode: str) -> None:
    """References are encoded only in context; clicks are encoded in all modes; presence is fitted later."""
    names = {name for name in one[f"{mode} frozen"] if name != "loss"}
    assert any(name.startswith("mask_encoder.") for name in names) == (mode == "in_context")
    assert ("decoder.class_content" in names) == (mode == "semantic")
    assert any(name.startswith("decoder.clicks.") for name in names)
    assert any(name.startswith("image_encoder.") for name in names)
    assert not any(name.startswith("decoder.presence.") for name in names)
