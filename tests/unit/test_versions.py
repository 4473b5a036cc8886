# SPDX-License-Identifier: Apache-2.0
"""The model store: publication, rollback, damage on disk, kills and full disks at any moment."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from kprism_model.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib import files
from lib.learning.version_files import SHIPPED, VersionError
from lib.learning.versions import Served, Versions
from lib.routes import MODES
from tests.unit.kill_at_rename import status_of_killed
from tools.versions import main

REGISTRY = ClassRegistry(["liver", "spleen", "left kidney", "right kidney"])
EVERYTHING = {mode: dict.fromkeys(REGISTRY.names) for mode in MODES}
"""Routes of a version that answers every structure itself."""


def network(value: float) -> KPrism:
    """A tiny network that is told apart by one bias."""
    model = KPrism(KPrismConfig.tiny()).eval()
    torch.nn.init.constant_(model.decoder.heads[0].last.bias, value)
    return model


def value_of(model: KPrism) -> float:
    return float(model.decoder.heads[0].last.bias.detach())


def own_weights(served: Served) -> Checkpoint:
    """The weights of the version that serves."""
    return served.parts.get(served.number, served.shipped)


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    save_checkpoint(tmp_path / "shipped.safetensors", network(0.0), REGISTRY, metadata={"run": "first"})
    return Versions(tmp_path / "versions", tmp_path / "shipped.safetensors")


def publish(versions: Versions, value: float, **metadata: object) -> int:
    return versions.publish(network(value), REGISTRY, metadata=metadata, routes=EVERYTHING)


def test_the_shipped_weights_serve_until_something_is_published(versions: Versions) -> None:
    served = versions.load()
    assert (served.number, served.warning, value_of(own_weights(served).model)) == (SHIPPED, None, 0.0)
    assert [version.number for version in versions.known()] == [SHIPPED]
    assert versions.current().metadata == {"run": "first"}


def test_a_published_version_serves_with_all_that_was_said_of_it(versions: Versions) -> None:
    before = versions.stamp()
    assert publish(versions, 1.0, trained_on=["case1", "case2"], metrics={"semantic": 0.5}) == 1
    assert versions.stamp() != before
    served = versions.load()
    assert (served.number, value_of(own_weights(served).model)) == (1, 1.0)
    version = versions.current()
    assert version.parent == SHIPPED
    assert version.base == versions.version(SHIPPED).weights_version
    assert version.metadata == {
        "base": version.base,
        "trained_on": ["case1", "case2"],
        "metrics": {"semantic": 0.5},
        "routes": {mode: dict.fromkeys(REGISTRY.names, 1) for mode in MODES},
    }
    assert version.weights_version == own_weights(served).weights_version
    assert abs(version.made - time.time()) < 60


def test_rollback_serves_the_old_weights_and_the_next_version_descends_from_them(versions: Versions) -> None:
    for value in (1.0, 2.0, 3.0):
        publish(versions, value)
    versions.roll_back(1)
    assert value_of(own_weights(versions.load()).model) == 1.0
    assert publish(versions, 4.0) == 4
    assert versions.current().parent == 1
    versions.roll_back(SHIPPED)
    assert value_of(own_weights(versions.load()).model) == 0.0
    assert [version.number for version in versions.known()] == [0, 1, 2, 3, 4]


def test_a_choice_that_was_made_during_a_training_is_not_overruled(versions: Versions) -> None:
    for value in (1.0, 2.0):
        publish(versions, value)
    chosen = versions.stamp()
    versions.roll_back(1)
    with pytest.raises(VersionError, match="another version of the weights was chosen during the training"):
        versions.publish(network(3.0), REGISTRY, metadata={}, routes=EVERYTHING, parent=2, chosen=chosen)
    assert versions.current().number == 1 and [version.number for version in versions.known()] == [0, 1, 2]
    assert versions.publish(network(3.0), REGISTRY, metadata={}, routes=EVERYTHING, chosen=versions.stamp()) == 3


def test_rollback_to_what_is_not_there_or_damaged_changes_nothing(versions: Versions) -> None:
    publish(versions, 1.0)
    publish(versions, 2.0)
    with pytest.raises(VersionError, match=r"there is no version 7 .* there are 0, 1, 2"):
        versions.roll_back(7)
    damage(versions.version(1).path)
    with pytest.raises(VersionError, match="version 1 of the weights is damaged"):
        versions.roll_back(1)
    assert versions.current().number == 2


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_version_is_left_out_for_its_nearest_good_ancestor(versions: Versions) -> None:
    publish(versions, 1.0)
    publish(versions, 2.0)
    versions.roll_back(1)
    publish(versions, 3.0)  # its parent is 1; 2 was put aside
    damage(versions.version(3).path)
    served = versions.load()
    assert (served.number, value_of(own_weights(served).model)) == (1, 1.0)
    assert served.warning is not None
    assert served.warning.startswith("version 3 of the weights is damaged and left out")
    versions.version(1).path.write_bytes(b"")
    assert versions.load().number == SHIPPED


def test_a_lost_description_is_a_damaged_version_too(versions: Versions) -> None:
    publish(versions, 1.0)
    publish(versions, 2.0)
    versions.version(2).path.with_suffix(".json").unlink()
    assert versions.load().number == 1
    assert publish(versions, 3.0) == 3  # a number that was given is never given again


def test_a_damaged_pointer_gives_the_newest_version_and_says_so(versions: Versions) -> None:
    publish(versions, 1.0)
    publish(versions, 2.0)
    (versions.folder / "current.json").write_text("{")
    served = versions.load()
    assert served.number == 2
    assert served.warning is not None and "is damaged" in served.warning
    assert publish(versions, 3.0) == 3


def test_damaged_shipped_weights_are_an_error_of_their_own(versions: Versions) -> None:
    damage(versions.shipped)
    with pytest.raises(CheckpointError, match="SHA-256"):
        versions.load()


def test_old_versions_are_pruned_but_never_the_serving_one_or_its_parent(versions: Versions) -> None:
    versions.keep = 3
    for value in range(1, 6):
        publish(versions, float(value))
    assert [version.number for version in versions.known()] == [0, 3, 4, 5]
    versions.roll_back(3)
    publish(versions, 6.0)
    publish(versions, 7.0)
    assert [version.number for version in versions.known()] == [0, 5, 6, 7]
    versions.roll_back(5)  # the parent of 6 is gone by now: what is left is a version like others
    assert value_of(own_weights(versions.load()).model) == 5.0
    assert not list(versions.folder.glob("0003*"))


def test_what_a_serving_version_or_its_parent_has_routes_to_is_not_pruned(versions: Versions) -> None:
    versions.keep = 2
    publish(versions, 1.0)
    publish(versions, 2.0)
    publish_routes(versions, 3.0, semantic={"liver": 1, "spleen": None})
    publish_routes(versions, 4.0, semantic={"spleen": None})
    assert [version.number for version in versions.known()] == [0, 1, 3, 4]
    publish(versions, 5.0)
    assert [version.number for version in versions.known()] == [0, 4, 5]


def publish_routes(versions: Versions, value: float, **routes: dict[str, int | None]) -> int:
    return versions.publish(network(value), REGISTRY, metadata={}, routes=routes)


def test_each_structure_and_mode_is_answered_by_the_version_that_its_route_names(versions: Versions) -> None:
    publish(versions, 1.0)
    kinds, provisional = {"liver": ["CT, abdomen"]}, {"semantic": ["spleen"]}
    metadata = {"kinds": kinds, "provisional": provisional}
    routes = {"semantic": {"spleen": None, "liver": 1}, "interactive": {"liver": 1}}
    assert versions.publish(network(2.0), REGISTRY, metadata=metadata, routes=routes) == 2
    served = versions.load()
    assert served.routes.to_json() == {"semantic": {"spleen": 2, "liver": 1}, "interactive": {"liver": 1}}
    assert {number: value_of(part.model) for number, part in served.parts.items()} == {1: 1.0, 2: 2.0}
    assert value_of(served.shipped.model) == 0.0
    assert served.routes.version_for("semantic", "Spleen") == 2
    assert served.routes.version_for("in_context", "spleen") is None
    assert (served.kinds, served.provisional) == ({"liver": ("CT, abdomen",)}, {"semantic": ("spleen",)})
    publish(versions, 3.0)
    versions.roll_back(2)
    assert versions.load().routes == served.routes
    versions.roll_back(SHIPPED)
    assert (versions.load().parts, versions.load().routes.numbers()) == ({}, ())


def test_a_version_without_one_that_it_has_routes_to_is_left_out(versions: Versions) -> None:
    publish(versions, 1.0)
    publish(versions, 2.0)
    publish_routes(versions, 3.0, semantic={"liver": 1, "spleen": None})
    damage(versions.version(1).path)
    served = versions.load()
    assert (served.number, served.warning is None) == (2, False)  # the parent of 3 needs only itself
    assert served.warning is not None and "version 3 of the weights is damaged and left out" in served.warning
    versions.roll_back(2)
    with pytest.raises(VersionError, match=r"version 3 .* cannot serve: version 1 of the weights is damaged"):
        versions.roll_back(3)
    for suffix in (".json", ".safetensors"):
        versions.version(2).path.with_name("0001.json").with_suffix(suffix).unlink()
    with pytest.raises(VersionError, match="version 3 of the weights cannot serve: there is no version 1"):
        versions.roll_back(3)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({"semantic": {"tumour": None}}, "'tumour' has a route to version 2, which knows no such class"),
        ({"semantic": {"liver": 3}}, "routes of semantic send 'liver' to version 3; expected 1 to 2"),
        ({"scribbles": {"liver": None}}, "routes name the mode 'scribbles'; expected one of semantic, in_context"),
    ],
)
def test_routes_that_cannot_be_followed_are_not_published(
    versions: Versions, routes: dict[str, dict[str, int | None]], message: str
) -> None:
    publish(versions, 1.0)
    with pytest.raises(ValueError, match=message):
        versions.publish(network(2.0), REGISTRY, metadata={}, routes=routes)
    assert (versions.load().number, [version.number for version in versions.known()]) == (1, [0, 1])
    assert publish(versions, 2.0) == 2


def test_routes_that_are_damaged_on_the_disk_are_a_damaged_version(versions: Versions) -> None:
    publish(versions, 1.0)
    publish(versions, 2.0)
    path = versions.folder / "0002.json"
    content = json.loads(path.read_bytes())
    content["metadata"]["note"]["routes"]["semantic"]["liver"] = "two"
    path.write_text(json.dumps(content))
    served = versions.load()
    assert served.number == 1 and served.warning is not None
    assert "routes of semantic send 'liver' to version 'two'; expected 1 to 2" in served.warning


def test_a_parent_outlives_younger_versions_that_do_not_serve(versions: Versions) -> None:
    versions.keep = 2
    publish(versions, 1.0)
    for value in (2.0, 3.0, 4.0):
        versions.roll_back(1)
        publish(versions, value)
    assert [version.number for version in versions.known()] == [0, 1, 4]


def test_a_network_that_cannot_be_stored_is_not_published(versions: Versions) -> None:
    publish(versions, 1.0)
    with pytest.raises(CheckpointError, match="not finite"):
        publish(versions, float("nan"))
    assert versions.load().number == 1
    assert sorted(path.name for path in versions.folder.iterdir()) == [
        ".lock", "0001.json", "0001.safetensors", "current.json",
    ]  # fmt: skip


@pytest.mark.parametrize("failing", ["0002.safetensors", "0002.json", "current.json"])
def test_a_full_disk_leaves_the_old_version_serving(
    versions: Versions, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    publish(versions, 1.0)
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        publish(versions, 2.0)
    monkeypatch.undo()
    served = versions.load()
    assert (served.number, served.warning) == (1, None)
    assert not list(versions.folder.glob(".*.part"))
    publish(versions, 3.0)
    assert value_of(own_weights(versions.load()).model) == 3.0


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_in_the_middle_of_a_publication_leaves_the_old_version(versions: Versions, renames: int) -> None:
    publish(versions, 1.0)
    model = network(2.0)
    publication = partial(versions.publish, model, REGISTRY, metadata={}, routes=EVERYTHING)
    assert status_of_killed(publication, renames) == -signal.SIGKILL
    served = versions.load()
    assert (served.number, served.warning, value_of(own_weights(served).model)) == (1, None, 1.0)
    number = publish(versions, 4.0)
    assert number > 1 and value_of(own_weights(versions.load()).model) == 4.0
    assert not list(versions.folder.glob(".*.part"))


def test_the_command_lists_checks_and_rolls_back(versions: Versions, capsys: pytest.CaptureFixture[str]) -> None:
    publish(versions, 1.0, trained_on=["a", "b", "c"])
    publish(versions, 2.0)
    where = ["--folder", str(versions.folder), "--shipped", str(versions.shipped)]
    assert main([*where, "rollback", "1"]) == 0
    assert main([*where, "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("serving now:    1")
    assert [line[0] for line in lines[1:]] == [" ", "*", " "]
    names = ", ".join(REGISTRY.names)
    assert lines[2].endswith(f"from 0  3 cases  semantic: {names}  in_context: {names}  interactive: {names}")
    damage(versions.version(2).path)
    assert main([*where, "check"]) == 1
    assert "DAMAGED" in capsys.readouterr().out.splitlines()[2]
    assert main([*where, "rollback", "2"]) == 1
    assert "version 2 of the weights is damaged" in capsys.readouterr().err


def test_the_command_does_not_wait_for_pytorch(repository: Path) -> None:
    """Importing it takes most of the five seconds in which somebody wants to be back at an earlier version."""
    places = {**os.environ, "PYTHONPATH": f"{repository / 'apps' / 'kprism'}:{repository}"}
    code = "import sys, tools.versions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=places, check=False).returncode == 0


def test_a_json_file_that_holds_no_object_is_named(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "none.json") is None
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"list\.json holds list, expected a JSON object"):
        files.read_json(tmp_path / "list.json")
