# SPDX-License-Identifier: Apache-2.0
"""A version taken from one server to another, and archives that are damaged or made by somebody else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kprism_model.checkpoint import save_checkpoint
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib.learning.version_archive import MANIFEST, export_version, import_version
from lib.learning.version_files import VersionError
from lib.learning.versions import Versions
from tests.unit.kill_at_rename import status_of_killed
from tests.unit.test_versions import EVERYTHING, REGISTRY, damage, network, own_weights, publish, value_of
from tools.versions import main

ROUTES = {"semantic": {"liver": 2, "spleen": 1}, "interactive": {"liver": 2}}
KINDS = {"liver": ["CT"]}


def site(folder: Path) -> Versions:
    folder.mkdir()
    save_checkpoint(folder / "shipped.safetensors", network(0.0), REGISTRY, metadata={})
    return Versions(folder / "versions", folder / "shipped.safetensors")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites and an archive of the first one's last version, made once and copied for each test.

    `here` has two versions; of the second, the spleen is answered by the first. `there` has three of its own.
    """
    folder = tmp_path_factory.mktemp("sites")
    here, there = site(folder / "here"), site(folder / "there")
    for suffix in (".json", ".safetensors"):  # both sites have the same release
        shutil.copy(here.shipped.with_suffix(suffix), there.shipped.with_suffix(suffix))
    cases = ["patient7", "b"]
    publish(here, 1.0, trained_on=cases[:1])
    metadata = {"kinds": KINDS, "trained_on": cases, "skipped": {"c": "bad"}}
    here.publish(network(2.0), REGISTRY, metadata=metadata, routes=ROUTES)
    for value in (5.0, 6.0, 7.0):
        publish(there, value)
    assert export_version(here, 2, folder / "site.zip") == [1, 2]
    return folder


def copied(folder: Path, to: Path) -> Versions:
    shutil.copytree(folder, to)
    return Versions(to / "versions", to / "shipped.safetensors")


@pytest.fixture
def here(originals: Path, tmp_path: Path) -> Versions:
    return copied(originals / "here", tmp_path / "here")


@pytest.fixture
def there(originals: Path, tmp_path: Path) -> Versions:
    return copied(originals / "there", tmp_path / "there")


@pytest.fixture
def archive(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(originals / "site.zip", tmp_path / "site.zip"))


def files_of(versions: Versions) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in versions.folder.iterdir() if path.name != ".lock"}


def test_an_imported_version_serves_after_a_rollback_with_its_routes_renumbered(
    here: Versions, there: Versions, archive: Path
) -> None:
    version = import_version(there, archive)
    assert (version.number, version.parent, there.current().number) == (5, 0, 3)
    assert version.metadata["routes"] == {
        "semantic": {"liver": 5, "spleen": 4},
        "interactive": {"liver": 5},
    }
    assert (version.metadata["base"], version.metadata["kinds"]) == (here.version(0).weights_version, KINDS)
    assert version.metadata["origin"] == {"archive": "site.zip", "version": 2}
    assert version.weights_version == here.version(2).weights_version
    assert there.version(4).weights_version == here.version(1).weights_version
    assert [there.fault(entry) for entry in there.known()] == [None] * 6
    there.roll_back(5)
    served = there.load()
    assert (served.number, served.warning, value_of(own_weights(served).model)) == (5, None, 2.0)
    assert publish(there, 8.0) == 6


def test_the_archive_names_structures_but_no_cases(originals: Path, archive: Path) -> None:
    shipped = json.loads((originals / "here" / "shipped.json").read_text())
    with zipfile.ZipFile(archive) as opened:
        manifest = json.loads(opened.read(MANIFEST))
        texts = [opened.read(name) for name in opened.namelist() if name.endswith(".json")]
    assert (manifest["version"], manifest["base"], manifest["routes"]) == (2, shipped["weights_version"], ROUTES)
    assert (manifest["structures"], manifest["kinds"]) == (list(REGISTRY.names), KINDS)
    assert sorted(manifest["files"]) == ["0001.json", "0001.safetensors", "0002.json", "0002.safetensors"]
    assert len(texts) == 3 and not any(b"patient7" in text or b"skipped" in text for text in texts)


def test_a_version_is_imported_once_and_a_routed_one_that_is_here_is_used(
    here: Versions, there: Versions, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(VersionError, match="version 2 is here already, as version 2"):
        import_version(here, archive)
    export_version(here, 1, tmp_path / "first.zip")
    assert import_version(there, tmp_path / "first.zip").number == 4
    version = import_version(there, archive)
    assert version.number == 5 and version.metadata["routes"]["semantic"] == {"liver": 5, "spleen": 4}


def test_what_cannot_be_exported(here: Versions, tmp_path: Path) -> None:
    file = tmp_path / "out.zip"
    with pytest.raises(VersionError, match="version 0 of the weights is the shipped one"):
        export_version(here, 0, file)
    with pytest.raises(VersionError, match=r"there is no version 9 .* there are 0, 1, 2"):
        export_version(here, 9, file)
    damage(here.version(1).path)
    with pytest.raises(VersionError, match="version 1 of the weights is damaged"):
        export_version(here, 2, file)
    assert not file.exists()
    file.write_bytes(b"mine")
    with pytest.raises(VersionError, match=r"out\.zip exists already"):
        export_version(here, 2, file)
    assert file.read_bytes() == b"mine"


def rewritten(
    archive: Path, change: Callable[[dict[str, bytes]], None], *, manifest: dict[str, Any] | None = None
) -> None:
    """The archive with other entries, and other keys in its manifest."""
    with zipfile.ZipFile(archive) as opened:
        entries = {name: opened.read(name) for name in opened.namelist()}
    entries[MANIFEST] = json.dumps({**json.loads(entries[MANIFEST]), **(manifest or {})}).encode()
    change(entries)
    with zipfile.ZipFile(archive, "w") as written:
        for name, content in entries.items():
            written.writestr(name, content)


def flipped(entries: dict[str, bytes]) -> None:
    content = bytearray(entries["0001.safetensors"])
    content[len(content) // 2] ^= 0xFF
    entries["0001.safetensors"] = bytes(content)


def without_half(entries: dict[str, bytes]) -> None:
    del entries["0001.json"]
    manifest = json.loads(entries[MANIFEST])
    del manifest["files"]["0001.json"]
    entries[MANIFEST] = json.dumps(manifest).encode()


BAD_ENTRIES: dict[str, tuple[Callable[[dict[str, bytes]], None], dict[str, Any], str]] = {
    "a path": (
        lambda entries: entries.update({"../0009.json": b"{}"}),
        {},
        r"holds '\.\./0009\.json'; expected manifest",
    ),
    "an absolute path": (lambda entries: entries.update({"/etc/0009.json": b"{}"}), {}, "holds '/etc/0009.json'"),
    "another file": (lambda entries: entries.update({"0009.json": b"{}"}), {}, "lists the files .*; it holds .*0009"),
    "a changed file": (flipped, {}, r"0001\.safetensors has SHA-256 .*; the manifest says"),
    "half a pair": (without_half, {}, r"expected both 0001\.safetensors and 0001\.json"),
    "no manifest": (lambda entries: entries.pop(MANIFEST) and None, {}, "expected manifest.json and each name once"),
    "a manifest that is no JSON": (lambda entries: entries.update({MANIFEST: b"{"}), {}, "manifest.json is not JSON"),
    "a manifest that is a list": (lambda entries: entries.update({MANIFEST: b"[]"}), {}, "manifest.json holds list"),
    "another format": (lambda _: None, {"format_version": 2}, "the format is 'kprism-version' 2; expected"),
    "another version": (lambda _: None, {"version": 3}, "the version is 3; expected one of 1, 2"),
    "no files": (lambda _: None, {"files": None}, "lists the files None"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_archives_with_other_entries_are_refused(there: Versions, archive: Path, name: str) -> None:
    change, manifest, message = BAD_ENTRIES[name]
    rewritten(archive, change, manifest=manifest)
    before = files_of(there)
    with pytest.raises(VersionError, match=message):
        import_version(there, archive)
    assert files_of(there) == before and not (there.folder.parent / "0009.json").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_is_refused(there: Versions, archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("0001.json", b"{}")
    with pytest.raises(VersionError, match=r"expected manifest\.json and each name once"):
        import_version(there, archive)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_archives_are_refused(there: Versions, archive: Path, share: float) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    before = files_of(there)
    with pytest.raises(VersionError, match=r"site\.zip is no ZIP archive or is damaged"):
        import_version(there, archive)
    assert files_of(there) == before


def test_a_flipped_bit_in_the_file_is_noticed(there: Versions, archive: Path) -> None:
    damage(archive)
    with pytest.raises(VersionError, match=r"Bad CRC-32 for file"):
        import_version(there, archive)


def test_routes_must_lead_to_versions_in_the_archive(here: Versions, there: Versions, tmp_path: Path) -> None:
    here.publish(network(3.0), REGISTRY, metadata={}, routes={"semantic": {"liver": 2}})
    export_version(here, 3, tmp_path / "three.zip")

    def lose(entries: dict[str, bytes]) -> None:
        manifest = json.loads(entries[MANIFEST])
        for name in ("0002.json", "0002.safetensors"):
            del entries[name], manifest["files"][name]
        entries[MANIFEST] = json.dumps(manifest).encode()

    rewritten(tmp_path / "three.zip", lose)
    with pytest.raises(VersionError, match="version 3 routes structures to version 2, which is not in it"):
        import_version(there, tmp_path / "three.zip")


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([1], r"version 2: routes are \[1\]; expected an object"),
        ({"semantic": ["liver"]}, r"version 2: routes of semantic are \['liver'\]; expected an object"),
        ({"semantic": {"liver": "2"}}, "version 2: routes of semantic send 'liver' to version '2'; expected 1 to 2"),
        ({"semantic": {"liver": True}}, "to version True; expected 1 to 2"),
        ({"semantic": {"liver": 0}}, "to version 0; expected 1 to 2"),
        ({"semantic": {"liver": 3}}, "to version 3; expected 1 to 2"),
        ({"scribbles": {"liver": 2}}, "routes name the mode 'scribbles'; expected one of semantic"),
        ({"semantic": {"liver": 2, "LIVER": 1}}, "routes of semantic name the structure 'liver' twice"),
    ],
)
def test_an_archive_with_wrong_routes_is_refused(there: Versions, archive: Path, routes: Any, message: str) -> None:
    def forge(entries: dict[str, bytes]) -> None:
        description = json.loads(entries["0002.json"])
        description["metadata"]["note"]["routes"] = routes
        entries["0002.json"] = json.dumps(description).encode()
        manifest = json.loads(entries[MANIFEST])
        manifest["files"]["0002.json"]["sha256"] = hashlib.sha256(entries["0002.json"]).hexdigest()
        entries[MANIFEST] = json.dumps(manifest).encode()

    rewritten(archive, forge)
    before = files_of(there)
    with pytest.raises(VersionError, match=message):
        import_version(there, archive)
    assert files_of(there) == before


def test_a_version_of_another_network_is_refused(there: Versions, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    config = replace(KPrismConfig.tiny(), native_size=96)
    save_checkpoint(other / "shipped.safetensors", KPrism(config).eval(), REGISTRY, metadata={})
    versions = Versions(other / "versions", other / "shipped.safetensors")
    versions.publish(KPrism(config).eval(), REGISTRY, metadata={}, routes=EVERYTHING)
    export_version(versions, 1, tmp_path / "other.zip")
    with pytest.raises(VersionError, match="version 1 is of another network than the shipped weights"):
        import_version(there, tmp_path / "other.zip")


def test_damaged_shipped_weights_are_named(there: Versions, archive: Path) -> None:
    there.shipped.with_suffix(".json").write_text("{}")
    with pytest.raises(VersionError, match=r"version 1 cannot be compared with the shipped weights, .*'config'"):
        import_version(there, archive)


@pytest.mark.parametrize("failing", ["0004.safetensors", "0005.safetensors", "0004.json", "0005.json"])
def test_a_full_disk_during_an_import_adds_nothing(
    there: Versions, archive: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before, rename = files_of(there), os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            import_version(there, archive)
    assert files_of(there) == before
    assert import_version(there, archive).number == 5


@pytest.mark.parametrize("renames", range(4))
def test_a_kill_during_an_import_leaves_only_whole_versions(there: Versions, archive: Path, renames: int) -> None:
    assert status_of_killed(partial(import_version, there, archive), renames) == -signal.SIGKILL
    assert there.load().number == 3
    assert all(there.fault(version) is None for version in there.known())
    assert 5 not in [version.number for version in there.known()]
    assert import_version(there, archive).number in (5, 6)


def test_a_kill_during_an_export_leaves_no_file(here: Versions, tmp_path: Path) -> None:
    assert status_of_killed(partial(export_version, here, 2, tmp_path / "out.zip"), 0) == -signal.SIGKILL
    assert not (tmp_path / "out.zip").exists()


def test_the_command_exports_imports_and_lists_the_origin(
    here: Versions, there: Versions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "heart.zip")

    def run(versions: Versions, *arguments: str) -> int:
        return main(["--folder", str(versions.folder), "--shipped", str(versions.shipped), *arguments])

    assert run(here, "export", "2", file) == 0
    assert run(there, "import", file) == 0
    printed = capsys.readouterr().out
    assert "version 1, 2" in printed and "`rollback 5` makes it serve" in printed
    assert run(there, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    expected = "from version 2 of heart.zip  2 cases  semantic: liver, spleen (version 4)  interactive: liver"
    assert lines[5].endswith(expected) and lines[3].startswith("*    3")
    assert run(there, "import", str(tmp_path / "none.zip")) == 1
    assert "there is no file" in capsys.readouterr().err
    assert run(here, "export", "2", str(tmp_path / "no folder" / "x.zip")) == 1
    assert "No such file or directory" in capsys.readouterr().err
