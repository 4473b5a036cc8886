# SPDX-License-Identifier: Apache-2.0
"""An upgrade to another network at a site with history: what serves, what is told, and the one training it takes.

The site is a real one of an earlier time, see `tests/e2e/old_site/make.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from benchmarks.live_server import LiveServer
from benchmarks.places import ROOT
from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.weights import warm_start
from lib.learning.versions import Versions
from tests.e2e.old_site.make import ARCHIVE, LABELLED, STRUCTURES, teach
from tests.e2e.site import get, train, version, wait
from tests.tiny_network import copy_weights

TAUGHT = list(STRUCTURES[:2])
"""What the second version of the old network knew; the third structure was never in a published one."""


class Site(NamedTuple):
    studies: Path
    weights: Path
    before: dict[str, bytes]

    @property
    def state(self) -> Path:
        return self.studies / ".kprism"

    def serve(self) -> LiveServer:
        return LiveServer(self.studies, conf={"model_path": str(self.weights), "train_after": "0"})

    def changed(self, *kept: str) -> list[str]:
        """The files of the old state below `kept` that are not what they were, or gone; cases may gain entries."""
        now = contents(self.studies)
        return [
            name
            for name, content in self.before.items()
            if name.startswith(kept) and now.get(name) != content and not has_all(name, content, now.get(name))
        ]


def has_all(name: str, before: bytes, now: bytes | None) -> bool:
    """Whether a file describes a case and still says all that it said."""
    if Path(name).parts[:-1] != (".kprism", "intake", "cases") or now is None:
        return False
    said = json.loads(before)
    del said["side"]  # of two, when there were no folds
    return bool(said.items() <= json.loads(now).items())


def contents(studies: Path) -> dict[str, bytes]:
    """All files of the state and all labels, by their place in the studies."""
    files = [*(studies / ".kprism").rglob("*"), *(studies / "labels").rglob("*")]
    return {str(path.relative_to(studies)): path.read_bytes() for path in files if path.is_file()}


def copied(folder: Path) -> Site:
    """A copy of the old site; its shipped weights are still to be made."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return Site(folder / "studies", folder / "shipped.safetensors", contents(folder / "studies"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The old site with shipped weights of another network."""
    found = copied(tmp_path_factory.mktemp("upgrade"))
    copy_weights(found.weights)
    return found


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[LiveServer]:
    with site.serve() as running:
        yield running


def shipped(site: Site) -> str:
    return str(json.loads(site.weights.with_suffix(".json").read_text())["weights_version"])


def listed(server: LiveServer) -> list[tuple[str, bool, bool]]:
    """Number, in use, of an earlier network: of every version, the newest first."""
    versions = get(server, "/kprism/api/status")["versions"]
    return [(entry["id"], entry["current"], entry["earlier"]) for entry in versions]


def ask(server: LiveServer, model: str, structures: list[str], **options: Any) -> requests.Response:
    """Ask for structures by name in a picture without a label."""
    return server.infer(model, "g", {"structures": structures, "presence": 0, **options}, output="json")


def test_the_old_site_has_two_versions_and_refused_weights() -> None:
    with tarfile.open(ARCHIVE) as archive:
        names = archive.getnames()
    state = "studies/.kprism"
    assert {f"{state}/versions/0001.json", f"{state}/versions/0002.json", f"{state}/training/unpublished.json"} <= {
        *names
    }
    assert ARCHIVE.stat().st_size < 1_500_000


def test_the_new_shipped_weights_serve_at_once_and_the_status_says_so(server: LiveServer, site: Site) -> None:
    status = get(server, "/kprism/api/status")
    assert status["weights"] == shipped(site)
    assert status["warning"] is None and not status["training"]["running"]
    assert listed(server) == [("2", False, True), ("1", False, True), ("0", True, False)]
    told = status["upgrade"]
    assert (told["versions"], told["labels"], told["structures"]) == (2, len(LABELLED), TAUGHT)
    assert told["sentence"].startswith("2 versions of the weights are of an earlier network and cannot serve")
    assert "one training on all of them" in told["sentence"] and ", ".join(TAUGHT) in told["sentence"]


def test_the_labels_are_kept(server: LiveServer, site: Site) -> None:
    assert get(server, "/datastore/")["completed"] == len(LABELLED)
    info = server.info()
    assert {*STRUCTURES} <= {*info["labels"]}
    answer = ask(server, "in_context", ["vessel"]).json()
    assert {used["image"] for used in answer["references"]["vessel"]} <= {*LABELLED}


@pytest.mark.parametrize("number", [1, 2])
def test_a_rollback_to_an_old_version_is_refused(server: LiveServer, site: Site, number: int) -> None:
    answer = requests.post(f"{server.url}/kprism/api/versions/{number}/current", timeout=60)
    assert answer.status_code == 400
    assert f"version {number} of the weights is of an earlier network" in answer.json()["detail"]
    assert version(server) == shipped(site)


def command(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    versions = [ROOT / "kprism", "versions", "--folder", site.state / "versions", "--shipped", site.weights]
    return subprocess.run([*versions, *arguments], capture_output=True, text=True, timeout=120)


def test_the_command_says_so_too(server: LiveServer, site: Site) -> None:
    for action in ("list", "check"):
        told = command(site, action)
        assert told.returncode == 0, told.stderr
        lines = told.stdout.splitlines()
        assert [line.startswith("*") for line in lines] == [True, False, False]
        assert ["of an earlier network: cannot serve" in line for line in lines] == [False, True, True]
    refused = command(site, "rollback", "1")
    assert refused.returncode == 1 and "of an earlier network" in refused.stderr


def test_what_an_old_version_knew_is_answered_after_labelled_cases(server: LiveServer, site: Site) -> None:
    known = server.info()["models"]["semantic"]["labels"]
    assert list(known) == ["liver", "spleen", *TAUGHT]
    assert get(server, "/kprism/api/status")["known"] == list(known)
    by_name, shown = ask(server, "semantic", TAUGHT).json(), ask(server, "in_context", TAUGHT).json()
    assert by_name["weights_version"] == shipped(site)
    assert by_name["references"] == shown["references"] and [*by_name["references"]] == TAUGHT
    masks = [server.infer(model, "g", {"structures": TAUGHT, "presence": 0}) for model in ("semantic", "in_context")]
    assert masks[0].content == masks[1].content
    assert by_name["label_names"] == {"cyst": 1, "stone": 2}


def test_old_and_shipped_structures_are_answered_together(server: LiveServer) -> None:
    answer = ask(server, "semantic", ["liver", "Cyst"]).json()
    assert answer["label_names"] == {"liver": 1, "cyst": 2}
    assert [*answer["references"]] == ["cyst"]
    unnamed = ask(server, "semantic", []).json()
    assert {*unnamed["label_names"], *unnamed["absent"]} == {"liver", "spleen"} and "references" not in unnamed


def test_what_no_published_version_knew_stays_unknown_to_semantic(server: LiveServer) -> None:
    refused = ask(server, "semantic", ["vessel"])
    assert refused.status_code == 400
    assert refused.json()["detail"].endswith("expected one of liver, spleen, cyst, stone")


def test_clicks_start_from_what_semantic_finds_of_an_old_structure(server: LiveServer) -> None:
    """What semantic finds beside the shipped structures: one of them may have all of its pixels."""
    found = ask(server, "semantic", ["liver", "spleen", "cyst"], presence=0.5).json()
    params = {"cyst": [[20, 20, 0]], "start_from": "semantic"}
    answer = server.infer("interactive", "g", params, output="json").json()
    assert answer["started_from"] == {"cyst": "nothing" if "cyst" in found["absent"] else "semantic"}


def test_nothing_of_the_old_state_was_changed(server: LiveServer, site: Site) -> None:
    """References belong to the serving weights and can be encoded again."""
    parts = [f".kprism/{part}/" for part in ("intake", "training", "versions")]
    assert len(site.before) > 30
    assert site.changed(*parts, "labels/") == []


def test_one_training_on_all_labels_ends_the_message(server: LiveServer, site: Site) -> None:
    train(server, options={"max_minutes": 0.75, "learning_rate": 2e-3})
    status = get(server, "/kprism/api/status")
    assert "Published as version 3" in status["training"]["sentence"], status["training"]
    wait(lambda: version(server) != shipped(site), server)
    assert get(server, "/kprism/api/status")["upgrade"] is None
    assert listed(server) == [("3", True, False), ("2", False, True), ("1", False, True), ("0", False, False)]
    new = json.loads((site.state / "versions" / "0003.json").read_text())
    assert new["metadata"]["parent"] == 0 and new["metadata"]["note"]["trained_on"] == list(LABELLED)
    assert new["metadata"]["note"]["base"] == shipped(site)
    assert not (site.state / "training" / "unpublished.json").exists()
    assert new["classes"] == ["liver", "spleen", *STRUCTURES]
    assert new["config"] == KPrismConfig.tiny(num_classes=5).to_dict()


def test_the_new_version_answers_what_its_routes_name(server: LiveServer, site: Site) -> None:
    """By name where the gate has found it better than references, by clicks where better than the shipped weights."""
    routes = json.loads((site.state / "versions" / "0003.json").read_text())["metadata"]["note"]["routes"]
    assert any(routes.values())
    answer = ask(server, "semantic", list(STRUCTURES)).json()
    assert answer["weights_version"] == version(server)
    by_name = routes.get("semantic", {})
    assert answer["answered_by"] == {n: "version 3" if n in by_name else "references" for n in STRUCTURES}
    assert {*answer.get("references", {})} == {*STRUCTURES} - {*by_name}
    clicked = server.infer("interactive", "g", {"vessel": [[20, 50, 0]]}, output="json").json()
    by_clicks = routes.get("interactive", {})
    assert clicked["answered_by"] == {"vessel": "version 3" if "vessel" in by_clicks else "shipped"}
    refused = requests.post(f"{server.url}/kprism/api/versions/2/current", timeout=60)
    assert refused.status_code == 400


def test_the_old_versions_and_labels_are_byte_for_byte_what_they_were(server: LiveServer, site: Site) -> None:
    """Last of this server: it serves the new version at the next start too."""
    files = [f".kprism/versions/{number}.{kind}" for number in ("0001", "0002") for kind in ("json", "safetensors")]
    assert all(file in site.before for file in files)
    assert site.changed(*files, ".kprism/intake/", "labels/") == []
    trained = version(server)
    server.stop()
    with site.serve() as restarted:
        assert version(restarted) == trained
        assert get(restarted, "/kprism/api/status")["upgrade"] is None


def test_with_other_shipped_weights_of_the_same_network_too_old_versions_are_listed_and_cannot_serve(
    tmp_path: Path,
) -> None:
    """They were written before versions had routes; what only they knew is segmented from references."""
    site = copied(tmp_path)
    old = json.loads(site.before[".kprism/versions/0001.json"])
    teach(KPrismConfig.from_dict({**old["config"], "num_classes": 2}), site.weights, minutes=0.02)
    with site.serve() as running:
        assert listed(running) == [("2", False, True), ("1", False, True), ("0", True, False)]
        status = get(running, "/kprism/api/status")
        assert status["upgrade"]["structures"] == TAUGHT and status["warning"] is None
        answer = ask(running, "semantic", TAUGHT).json()
        assert [*answer["references"]] == TAUGHT
        assert answer["answered_by"] == dict.fromkeys(TAUGHT, "references")
        refused = requests.post(f"{running.url}/kprism/api/versions/1/current", timeout=60)
        assert refused.status_code == 400


def test_other_shipped_weights_answer_what_they_know_and_a_version_the_rest(tmp_path: Path) -> None:
    site = copied(tmp_path)
    shutil.rmtree(site.state / "versions")
    copy_weights(site.weights)
    released = load_checkpoint(site.weights)
    own = KPrism(replace(released.model.config, num_classes=3))
    registry = released.registry.add(["cyst"])
    warm_start(own, registry, released)
    routes = {"semantic": {"cyst": None, "liver": None}, "interactive": {"liver": None}}
    Versions(site.state / "versions", site.weights).publish(own, registry, metadata={}, routes=routes)
    with site.serve() as running:
        assert ask(running, "semantic", ["liver", "cyst"]).json()["answered_by"] == {
            "liver": "version 1",
            "cyst": "version 1",
        }
    next_release = KPrism(released.model.config)
    next_release.load_state_dict({name: value * 1.01 for name, value in released.model.state_dict().items()})
    save_checkpoint(site.weights, next_release, released.registry, metadata={})
    with site.serve() as running:
        assert listed(running) == [("1", True, False), ("0", False, False)]
        answer = ask(running, "semantic", ["liver", "cyst"]).json()
        assert answer["answered_by"] == {"liver": "shipped", "cyst": "version 1"}
        assert get(running, "/kprism/api/status")["upgrade"] is None
