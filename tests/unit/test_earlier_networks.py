# SPDX-License-Identifier: Apache-2.0
"""Versions of an earlier network: how they are recognised, that they never serve, and that they stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib.learning.architecture import is_of_earlier_network
from lib.learning.version_files import SHIPPED, VersionError
from lib.learning.versions import Versions
from lib.routes import MODES
from tools.versions import main

OLD, NEW = KPrismConfig.tiny(num_classes=2), KPrismConfig.tiny(num_classes=2, base_channels=4)


def ship(path: Path, config: KPrismConfig, seed: int = 0) -> None:
    torch.manual_seed(seed)
    save_checkpoint(path, KPrism(config).eval(), ClassRegistry(["liver", "spleen"]), metadata={})


def publish(versions: Versions, config: KPrismConfig, **metadata: Any) -> int:
    registry = ClassRegistry(["liver", "spleen", "cyst"][: config.num_classes])
    routes = {mode: dict.fromkeys(registry.names) for mode in MODES}
    return versions.publish(KPrism(config).eval(), registry, metadata=metadata, routes=routes)


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    """Two versions of the old network, of which the second serves, and shipped weights of the new one."""
    ship(tmp_path / "shipped", OLD)
    found = Versions(tmp_path / "versions", tmp_path / "shipped.safetensors")
    publish(found, OLD)
    publish(found, KPrismConfig.tiny(num_classes=3), trained_on=["a", "b"])
    ship(tmp_path / "shipped", NEW)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def config(**changes: Any) -> dict[str, Any]:
    return {**OLD.to_dict(), **changes}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in OLD.to_dict().items() if name != key}


@pytest.mark.parametrize(
    ("first", "second", "earlier"),
    [
        (config(), config(), False),
        (config(num_classes=9), config(), False),
        (config(base_channels=4), config(), True),
        (config(attend_padding=True), config(), True),
        (config(scale="a key of tomorrow"), config(), True),
        (config(), config(scale="a key of tomorrow"), True),
        (config(scale="a"), config(scale="b"), True),
        (config(scale="a", num_classes=9), config(scale="a"), False),
        (without("width"), config(), True),
        (without("width"), without("width"), False),
    ],
)
def test_a_network_is_told_by_all_of_its_configuration_but_the_classes(
    first: dict[str, Any], second: dict[str, Any], earlier: bool
) -> None:
    assert is_of_earlier_network(first, second) is earlier


def test_a_key_that_is_read_as_its_default_makes_no_other_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions written after a key was added have it, weights shipped before do not."""
    read = KPrismConfig.from_dict
    monkeypatch.setattr(KPrismConfig, "from_dict", lambda values: read({"stem_stride": 2, **values}))
    assert OLD.stem_stride == 2
    assert not is_of_earlier_network(config(), without("stem_stride"))
    assert is_of_earlier_network(config(stem_stride=4), without("stem_stride"))


def test_the_new_shipped_weights_serve_and_nothing_is_changed(versions: Versions) -> None:
    before = contents(versions.folder)
    served = versions.load()
    assert (served.number, served.warning) == (SHIPPED, None)
    assert served.shipped.model.config == NEW
    assert versions.current().number == SHIPPED
    assert [(version.number, version.earlier) for version in versions.known()] == [(0, False), (1, True), (2, True)]
    assert versions.version(2).classes == ("liver", "spleen", "cyst")
    assert contents(versions.folder) == before


def test_a_rollback_to_an_earlier_network_is_refused(versions: Versions) -> None:
    before = contents(versions.folder)
    with pytest.raises(VersionError, match=r"version 1 of the weights is of an earlier network than .*shipped"):
        versions.roll_back(1)
    assert contents(versions.folder) == before
    assert versions.roll_back(SHIPPED).number == SHIPPED


def test_a_version_of_the_new_network_descends_from_the_shipped_weights(versions: Versions) -> None:
    before = contents(versions.folder)
    assert publish(versions, KPrismConfig.tiny(num_classes=3, base_channels=4)) == 3
    assert (versions.load().number, versions.current().parent) == (3, SHIPPED)
    after = contents(versions.folder)
    del before["current.json"]
    assert {name: after[name] for name in before} == before
    versions.version(3).path.write_bytes(b"")
    assert versions.load().number == SHIPPED


def test_the_old_network_shipped_again_has_its_versions_back(versions: Versions) -> None:
    publish(versions, KPrismConfig.tiny(num_classes=3, base_channels=4))
    ship(versions.shipped.with_suffix(""), OLD)
    assert versions.load().number == SHIPPED
    assert [version.number for version in versions.known() if version.earlier] == [3]
    versions.roll_back(2)
    assert (versions.load().number, versions.load().parts[2].model.config.num_classes) == (2, 3)


def test_with_other_shipped_weights_a_version_answers_what_they_do_not_know(
    versions: Versions, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has compared the version with the new weights, so these answer what they know."""
    base = versions.version(1).metadata["base"]
    ship(versions.shipped.with_suffix(""), OLD, seed=1)
    assert versions.version(SHIPPED).weights_version != base
    served = versions.load()
    assert (served.number, served.warning, versions.current().number) == (2, None, 2)
    assert served.routes.by_mode == {mode: {"cyst": 2} for mode in MODES}
    assert list(served.parts) == [2]
    assert not any(version.earlier for version in versions.known())
    warning = f"version 2 was compared with other shipped weights ({base}): the present ones answer liver, spleen"
    assert versions.version(2).left_out == ("liver", "spleen")
    assert str(versions.version(2).warning).startswith(warning) and warning in caplog.text


def test_a_version_without_routes_is_of_an_earlier_network(versions: Versions) -> None:
    """It was written when one network answered everything: nobody knows what it answers better."""
    path = versions.folder / "0002.json"
    content = json.loads(path.read_bytes())
    del content["metadata"]["note"]["routes"]
    path.write_text(json.dumps(content))
    ship(versions.shipped.with_suffix(""), OLD)
    assert [(version.number, version.earlier) for version in versions.known()] == [(0, False), (1, False), (2, True)]
    assert versions.load().number == 1
    with pytest.raises(VersionError, match="version 2 of the weights is of an earlier network"):
        versions.roll_back(2)


def test_the_command_tells_and_refuses_them(versions: Versions, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--folder", str(versions.folder), "--shipped", str(versions.shipped)]
    for action in ("list", "check"):
        assert main([*where, action]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line[0] for line in lines] == ["*", " ", " "]
        assert "earlier network" not in lines[0]
        assert lines[2].endswith("from 1  2 cases  of an earlier network: cannot serve")
    assert main([*where, "rollback", "2"]) == 1
    assert "version 2 of the weights is of an earlier network" in capsys.readouterr().err
