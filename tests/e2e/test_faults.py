# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while the server learns: kills, a full disk, several hands at once. Labels and versions survive.

Processes are killed by `faults/sitecustomize.py`, which they import; the full disk is a small file system of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import nibabel
import numpy as np
import psutil
import pytest
import requests

from benchmarks.live_server import LiveServer
from tests.e2e.site import NEW, Site, as_file, block, get, submit, train, version, wait

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def order(site: Site) -> Iterator[Path]:
    """Write a pattern into this file: whoever next puts a file of such a name in place is killed half-way."""
    path = site.studies.parent / "kill"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "faults"))
        patch.setenv("KPRISM_TEST_KILL", str(path))
        yield path


@pytest.fixture(scope="module")
def small_disk(site: Site) -> Iterator[Path | None]:
    """The folder of the versions on a file system of 32 MB; None where this user may not mount one."""
    site.versions.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(site.versions)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
    yield site.versions if mounted else None
    if mounted:
        subprocess.run(["umount", "--lazy", str(site.versions)], check=True)


@pytest.fixture(scope="module")
def server(site: Site, order: Path, small_disk: Path | None) -> Iterator[LiveServer]:
    """Trains by itself after three labels."""
    with site.serve(train_after="3", train_minutes="0.1") as running:
        yield running


def trainings(server: LiveServer) -> list[str]:
    """How each training since the start of the server stands."""
    answer = requests.get(f"{server.url}/train/", params={"all": True}, timeout=60)
    return [task["status"] for task in answer.json()] if answer.status_code == 200 else []


def told(server: LiveServer) -> dict[str, Any]:
    return dict(server.info()["train_stats"]["kprism"])


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_training_on_one_case_says_what_it_needs(server: LiveServer, site: Site) -> None:
    assert submit(server, "f", site.labels["f"]).status_code == 200
    train(server)
    assert trainings(server) == ["ERROR"]
    assert "training needs 2 labelled cases" in get(server, "/kprism/api/status")["training"]["sentence"]


def test_a_trainer_killed_while_it_publishes_is_taken_up_again(server: LiveServer, site: Site, order: Path) -> None:
    shipped = version(server)
    order.write_text("0001.safetensors")
    for name in "abc":
        assert submit(server, name, site.labels[name]).status_code == 200
    wait(lambda: not order.exists(), server)
    assert not (site.versions / "0001.safetensors").exists()
    wait(lambda: version(server) != shipped, server)
    wait(lambda: trainings(server) == ["ERROR", "ERROR", "DONE"], server)
    assert told(server)["message"].startswith("published as version 1: ")
    assert files_in(site.versions) == {"0001.safetensors", "0001.json", "current.json"}
    last = json.loads((site.studies / ".kprism" / "training" / "last.json").read_text())
    assert (last["state"], last["attempts"]) == ("finished", 2)


def test_submissions_of_one_case_at_once_leave_one_whole_label(server: LiveServer, site: Site) -> None:
    labels = [block(row, column) for row, column in ((20, 20), (20, 40), (40, 20), (40, 40))]
    together = Barrier(len(labels))

    def send(label: np.ndarray) -> int:
        together.wait()
        return submit(server, "d", as_file(label)).status_code

    with ThreadPoolExecutor(len(labels)) as threads:
        assert list(threads.map(send, labels)) == [200] * len(labels)
    entry = entry_of(site, "d")
    assert entry["revision"] == len(labels)
    stored = voxels(site.studies / "labels" / "final" / "d.nii")
    assert sum(np.array_equal(stored, label) for label in labels) == 1
    assert np.array_equal(stored, voxels(site.studies / ".kprism" / "intake" / entry["label"]))
    assert get(server, "/datastore/")["completed"] == 5


def entry_of(site: Site, image: str) -> dict[str, Any]:
    """The submission of a case."""
    return dict(json.loads((site.studies / ".kprism" / "intake" / "cases" / f"{image}.json").read_text()))


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_label_of_an_image_that_is_gone_is_refused(server: LiveServer, site: Site) -> None:
    (site.studies / "d.nii.gz").unlink()
    answers: list[requests.Response] = []

    def is_unknown() -> bool:
        answers.append(submit(server, "d", site.labels["d"]))
        return answers[-1].json()["detail"] == "image 'd' is not in this datastore"

    wait(is_unknown, server)  # the server notices within a moment that the file is gone
    assert answers[-1].status_code == 404
    assert all(answer.status_code in (400, 404) and "image 'd'" in answer.json()["detail"] for answer in answers)


def test_a_disk_that_is_full_when_a_version_is_published(
    server: LiveServer, site: Site, small_disk: Path | None
) -> None:
    """The case whose image is gone has been withdrawn, so that there is nothing to skip."""
    assert requests.post(f"{server.url}/kprism/api/versions/0/current", timeout=60).status_code == 200
    if small_disk is None:
        assert os.environ.get("CI") != "true", "this test must be able to mount a tmpfs where CI=true"
        pytest.skip("this user may not mount a small file system")
    before = files_in(small_disk)
    filler = fill(small_disk, site.weights.stat().st_size // 2)
    train(server)
    assert get(server, "/train/")["status"] == "ERROR"
    assert told(server)["message"].startswith("nothing was published: [Errno 28] No space left on device")
    assert told(server)["skipped"] == {}
    assert current(server) == "0" and get(server, "/kprism/api/status")["warning"] is None
    assert files_in(small_disk) == before | {filler.name}
    filler.unlink()


def current(server: LiveServer) -> str:
    """Number of the version that was published last or gone back to."""
    [entry] = [entry for entry in get(server, "/kprism/api/status")["versions"] if entry["current"]]
    return str(entry["id"])


def fill(folder: Path, room: int) -> Path:
    """A file that leaves so many bytes of a disk free."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    os.truncate(path, path.stat().st_size - room)
    return path


def test_training_asked_for_by_several_at_once_runs_once(server: LiveServer) -> None:
    """It starts from what somebody went back to."""
    before = trainings(server)
    together = Barrier(3)

    def ask(address: str) -> requests.Response:
        together.wait()
        return requests.post(f"{server.url}{address}", json={}, timeout=60)

    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(ask, ["/train/kprism", "/train/kprism", "/train/"]))
    started = [answer.status_code == 200 for answer in answers[:2]]
    started.append(answers[2].json()["kprism"]["result"] is not None)
    assert sum(started) == 1, [answer.text for answer in answers]
    assert all("a training is running" in a.text for a, first in zip(answers, started, strict=True) if not first)
    wait(lambda: trainings(server)[-1] not in ("SUBMITTED", "RUNNING"), server)
    assert trainings(server) == [*before, "DONE"]
    assert told(server)["message"].startswith("published as version 2: ") and current(server) == "2"


@pytest.mark.parametrize("file", ["scores.json", "final.safetensors"])
def test_a_trainer_killed_while_it_keeps_its_work_is_taken_up_again(
    server: LiveServer, site: Site, order: Path, file: str
) -> None:
    """It is killed before it publishes, and after that, before all of what the next training goes on from is kept."""
    before = trainings(server)
    order.write_text(file)
    assert requests.post(f"{server.url}/train/kprism", json={}, timeout=60).status_code == 200
    wait(lambda: not order.exists(), server)
    wait(lambda: trainings(server) == [*before, "ERROR", "DONE"], server)
    training = site.studies / ".kprism" / "training"
    json.loads((training / "scores.json").read_text())
    kept = {path.stem for path in (training / "working").glob("*.safetensors")}
    assert {"final", "fold0", "fold1", "fold2"} <= kept and not list((training / "runs").iterdir())
    assert get(server, "/kprism/api/status")["warning"] is None


def test_wrong_options_are_refused_before_anything_is_started(server: LiveServer) -> None:
    before = trainings(server)
    wrong = requests.post(f"{server.url}/train/kprism", json={"max_minutes": "long"}, timeout=60)
    assert (wrong.status_code, wrong.json()["detail"]) == (400, "option max_minutes is 'long'; expected a number")
    unknown = requests.post(f"{server.url}/train/deepedit", json={}, timeout=60)
    assert unknown.status_code == 404 and "expected one of kprism" in unknown.json()["detail"]
    assert trainings(server) == before


def test_a_training_can_be_stopped_and_stays_stopped(server: LiveServer, site: Site) -> None:
    children = start_long_training(server)
    asked = time.monotonic()
    assert requests.delete(f"{server.url}/train/", timeout=60).json()["status"] == "STOPPED"
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert time.monotonic() - asked < 30
    last = site.studies / ".kprism" / "training" / "last.json"
    wait(lambda: json.loads(last.read_text())["state"] == "stopped", server)
    assert trainings(server)[-1] == "STOPPED" and told(server)["message"].startswith("it was cut off while ")


def start_long_training(server: LiveServer) -> list[psutil.Process]:
    """Start a training of many minutes; its processes, once it computes."""
    began = requests.post(f"{server.url}/train/kprism", json={"max_minutes": 30}, timeout=60)
    assert began.status_code == 200, began.text
    wait(lambda: told(server)["message"] == "training" and "current_time" in told(server), server)
    return psutil.Process(server.process.pid).children(recursive=True)


def test_a_training_ends_with_its_server(server: LiveServer) -> None:
    """It stops the server of this file."""
    children = start_long_training(server)
    assert children
    server.stop()
    assert server.process.returncode != -9, "the server did not end by itself"
    assert psutil.wait_procs(children, timeout=30)[1] == []


KILLS = [
    ("e-*.nii", False),  # the file as it was sent: the client gets no answer and knows that it must send again
    ("datastore_v2.json", True),  # kept and noted, with the label in the datastore, but not in its list
    ("e.json", True),  # all but the submission's own file
]
"""Which file is half written when the server is killed, and whether its next start has the label."""


def test_a_server_killed_during_a_submission_has_all_of_the_label_or_nothing(site: Site, order: Path) -> None:
    intake = site.studies / ".kprism" / "intake"
    with ExitStack() as servers:
        running = servers.enter_context(site.serve())
        revision = 0
        for number, (pattern, is_stored) in enumerate(KILLS):
            label = block(22 + 6 * number, 30)
            interrupted = psutil.Process(running.process.pid).children(recursive=True)
            order.write_text(pattern)
            with pytest.raises(requests.ConnectionError):
                submit(running, "e", as_file(label))
            assert running.process.wait(60) == -9
            assert psutil.wait_procs(interrupted, timeout=30)[1] == [], "a training goes on without its server"
            running = servers.enter_context(site.serve())
            revision += is_stored
            assert files_in(intake / "pending") == set()
            for path in (*intake.glob("cases/*.json"), site.studies / "datastore_v2.json"):
                json.loads(path.read_text())
            assert get(running, "/datastore/")["completed"] == 4 + min(1, revision)
            if not is_stored:
                assert not (intake / "cases" / "e.json").exists()
                continue
            entry = entry_of(site, "e")
            assert entry["revision"] == revision, pattern
            stored = voxels(site.studies / "labels" / "final" / "e.nii")
            assert np.array_equal(stored, label) and np.array_equal(voxels(intake / entry["label"]), label)
        params = {"structures": NEW, "presence": 0, "reference_slices": 5}
        answer = running.infer("in_context", "f", params, output="json").json()
        assert {used["image"] for used in answer["references"][NEW]} == set("abce")
