# SPDX-License-Identifier: Apache-2.0
"""Three sites train together in NVIDIA FLARE's own simulator: what is averaged, what leaves a site, who fails."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors
import safetensors.numpy

from kprism_model.checkpoint import load_checkpoint
from kprism_model.training.weights import CLASS_TABLES
from lib.federation.exchange import expected_names, row_name
from lib.federation.simulation import environment
from lib.federation.site import Site
from lib.federation.site_training import SENT_NAME
from tests.federated_sites import make_site, shipped_in
from tests.tiny_network import WEIGHTS
from tools import federate, versions

LABELS = {"north": {"tumour": 1, "cyst": 2}, "south": {"cyst": 2, "Tumour": 1}, "east": {"tumour": 1}}
"""Site -> names of values: south names the structures in another order and spelling, east does not label one."""

CASES = {"north": 3, "south": 4, "east": 6}
TRAINED = {"north": 2, "south": 2, "east": 4}
"""Cases outside fold 0, which takes every third patient."""

ROUNDS = 2


@dataclass
class Run:
    """A federation that has ended: its folder, its sites, the exit status, and what was printed."""

    folder: Path
    sites: dict[str, Site]
    status: int
    printed: str

    def federate(self, *words: str) -> None:
        """Run the command with the sites, and keep how it ended."""
        named = [word for name in self.sites for word in ("--site", f"{name}={self.folder / name}")]
        given = [
            "--conf",
            "model_path",
            str(self.folder / "shipped.safetensors"),
            "--workspace",
            str(self.folder / "w"),
        ]
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            self.status = federate.main([*named, *given, "--structures", "tumour", "cyst", "--folds", "0", *words])
        self.printed = output.getvalue()


def made(folder: Path, names: tuple[str, ...]) -> Run:
    conf = shipped_in(folder)
    return Run(folder, {name: make_site(folder, name, CASES[name], LABELS[name], conf) for name in names}, -1, "")


@pytest.fixture(scope="module")
def federated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = made(tmp_path_factory.mktemp("federation"), tuple(LABELS))
    run.federate("--rounds", str(ROUNDS), "--steps", "40", "--batch-size", "4", "--learning-rate", "1e-3")
    assert run.status == 0, run.printed
    return run


def test_the_aggregate_is_the_mean_weighted_by_labelled_cases(federated: Run) -> None:
    path = federated.folder / "w" / "fold0" / "aggregate.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["rounds"] == str(ROUNDS)
    aggregate = safetensors.numpy.load_file(path)
    sent = {name: safetensors.numpy.load_file(site.folder / SENT_NAME) for name, site in federated.sites.items()}
    assert set(aggregate) == expected_names(load_checkpoint(WEIGHTS).model, ("tumour", "cyst"))
    differ = 0
    for name, value in aggregate.items():
        own = {site: tensors[name] for site, tensors in sent.items() if name in tensors}
        total = sum(TRAINED[site] for site in own)
        mean = sum(TRAINED[site] * tensor.astype(np.float64) for site, tensor in own.items()) / total
        assert (np.abs(value - mean) <= 1e-6 * np.maximum(1, np.abs(mean))).all(), name
        differ += not np.array_equal(own["north"], own["south"])
    assert differ > len(aggregate) / 2  # the sites did train


def test_only_the_listed_tensors_leave_a_site_and_no_row_that_it_has_not_trained(federated: Run) -> None:
    model = load_checkpoint(WEIGHTS).model
    for name, site in federated.sites.items():
        structures = ("tumour",) if name == "east" else ("tumour", "cyst")
        with safetensors.safe_open(site.folder / SENT_NAME, framework="numpy") as file:
            assert set(file.keys()) == expected_names(model, structures) and file.metadata() == {"round": str(ROUNDS)}
    aggregate = safetensors.numpy.load_file(federated.folder / "w" / "fold0" / "aggregate.safetensors")
    assert all(row_name(table, "cyst") in aggregate for table in CLASS_TABLES)


def test_the_server_has_seen_no_case_and_no_folder_of_a_site(federated: Run) -> None:
    server = federated.folder / "w" / "fold0" / "flare" / "kprism" / "server"
    files = [path for path in server.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for name in federated.sites:
            assert f"{name}-patient".encode() not in content and str(federated.folder / name).encode() not in content


def test_the_gate_of_each_site_judges_and_a_version_says_where_it_is_from(
    federated: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = federated.printed.splitlines()
    assert lines[0] == f"training without the patients of fold 0: {ROUNDS} rounds of 40 steps"
    assert [line.partition(":")[0] for line in lines[1:]] == ["north", "south", "east"]
    assert "not enough cases to tell (1 patient)" in lines[1] and "Tumour (semantic)" in lines[2]
    assert lines[3].startswith("east: published as version 1: tumour (semantic) 0."), lines[3]
    shipped = str(federated.folder / "shipped.safetensors")
    folder = str(federated.sites["east"].state / "versions")
    assert versions.main(["--folder", folder, "--shipped", shipped, "list"]) == 0
    assert "* " in (listed := capsys.readouterr().out) and "federated: 3 sites, rounds: 2" in listed
    note = federated.sites["east"].versions.version(1).metadata
    assert note["federated"]["structures"] == ["tumour", "cyst"] and note["federated"]["folds"] == [0]
    assert all(one["patients"] <= 2 for one in note["gate"])  # those of fold 0 alone


def test_a_site_judges_a_file_that_it_was_given_as_the_simulation_did(
    federated: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_site(tmp_path, "east", CASES["east"], LABELS["east"], shipped_in(tmp_path))
    file = federated.folder / "w" / "fold0" / "aggregate.safetensors"
    given = ["--conf", "model_path", str(tmp_path / "shipped.safetensors"), "--received", str(file)]
    assert federate.main(["--site", f"east={tmp_path / 'east'}", *given]) == 0
    assert capsys.readouterr().out == federated.printed.splitlines()[3] + "\n"


def test_a_site_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    run = made(tmp_path, ("north", "east"))
    for number in range(1, CASES["east"]):
        (tmp_path / "east" / f"east-patient{number}.nii.gz").write_bytes(b"damaged")
    run.federate("--rounds", "1", "--steps", "1")
    assert run.status == 1
    assert "kprism federate: the federation failed at site east: training needs 2 labelled cases" in run.printed
    assert "site north" not in run.printed
    assert not (tmp_path / "w" / "fold0" / "aggregate.safetensors").exists()
    assert [site.versions.current().number for site in run.sites.values()] == [0, 0]
    log = (tmp_path / "w" / "fold0" / "flare.log").read_text()
    assert "site east failed" in log and "patient1" not in log


def test_a_job_for_real_sites_holds_the_plan_and_no_folder_of_a_site(tmp_path: Path) -> None:
    run = made(tmp_path, ("north", "south"))
    run.federate("--rounds", "3", "--steps", "5", "--export", str(tmp_path / "jobs"))
    assert run.status == 0, run.printed
    [meta] = (tmp_path / "jobs" / "fold0" / "job").rglob("meta.json")
    assert json.loads(meta.read_text())["min_clients"] == 2
    for path in meta.parent.rglob("*"):
        if path.is_file():
            assert str(tmp_path / "north").encode() not in path.read_bytes()


def test_nothing_of_flare_outlives_a_command_that_is_ended(tmp_path: Path) -> None:
    run = made(tmp_path, ("north", "south"))
    words = [word for name in run.sites for word in ("--site", f"{name}={tmp_path / name}")]
    given = ["--conf", "model_path", str(tmp_path / "shipped.safetensors"), "--workspace", str(tmp_path / "w")]
    command = subprocess.Popen(
        [sys.executable, "-m", "tools.federate", *words, *given, "--structures", "tumour", "--steps", "100000"],
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    try:
        logs = [tmp_path / name / ".kprism" / "federation" / "run" / "log.jsonl" for name in run.sites]
        wait_until(lambda: all(log.exists() for log in logs) or command.poll() is not None)
        assert command.poll() is None and len(processes_in(tmp_path)) > 3
    finally:
        command.terminate()
        command.wait()
    wait_until(lambda: not processes_in(tmp_path))


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def processes_in(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = psutil.process_iter(["cmdline"])
    return [one.pid for one in found if any(str(folder) in word for word in one.info["cmdline"] or ())]
