# SPDX-License-Identifier: Apache-2.0
"""The launcher: what it says about arguments that it cannot use. Serving itself is tested with the models."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kprism_model.cli.main import LIBRARY_COMMANDS, SERVER_COMMANDS


def launch(repository: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `kprism` from another folder."""
    return subprocess.run([repository / "kprism", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "--port", "eighty"], "--port: expected a number from 1 to 65535, got 'eighty'"),
        (["serve", "--port", "65536"], "--port: expected a number from 1 to 65535, got '65536'"),
        (["serve", "--studies", "no/such/folder"], "there is no folder 'no/such/folder'"),
        (["serve", "--conf", "device"], "--conf needs a key and a value"),
        (["serve", "--host"], "--host needs a value"),
        (["serve", "--prot", "80"], "unknown option '--prot'"),
        (["sreve"], "unknown command 'sreve'"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(
    repository: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    ended = launch(repository, *arguments, folder=tmp_path)
    assert ended.returncode == 1
    assert sentence in ended.stderr


def test_a_port_in_use_is_named(repository: Path, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ended = launch(repository, "serve", "--studies", str(tmp_path), "--port", str(port), folder=tmp_path)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in ended.stderr


def test_help_names_every_command(repository: Path, tmp_path: Path) -> None:
    ended = launch(repository, "help", folder=tmp_path)
    assert ended.returncode == 0
    assert all(f"./kprism {command}" in ended.stdout for command in ("serve", "test", "help"))
    assert all(command in ended.stdout for command in {**SERVER_COMMANDS, **LIBRARY_COMMANDS})


@pytest.mark.parametrize("command", sorted({**SERVER_COMMANDS, **LIBRARY_COMMANDS}))
def test_the_script_knows_every_command(command: str, repository: Path) -> None:
    """It chooses by the command which requirements it installs."""
    script = (repository / "kprism").read_text()
    assert re.search(rf"(^ *|\| ){command}( \||\))", script, re.MULTILINE)


def test_wrong_arguments_are_named_before_anything_is_installed(repository: Path, tmp_path: Path) -> None:
    shutil.copy(repository / "kprism", tmp_path)
    shutil.copytree(repository / "kprism_model", tmp_path / "kprism_model")
    ended = launch(tmp_path, "serve", "--port", "0", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "kprism: --port: expected a number from 1 to 65535, got '0'.\n")
    assert launch(tmp_path, "serve", "--help", folder=tmp_path).stdout == launch(repository, folder=tmp_path).stdout
    assert not (tmp_path / ".venv").exists()


def test_the_same_commands_without_the_script(repository: Path) -> None:
    """`python -m kprism_model`, which is also what an installed `kprism` runs."""
    for words, status, sentence in (
        (["info", "nowhere"], 2, "error: there is no checkpoint file nowhere.json"),
        (["serve", "--host"], 1, "kprism: --host needs a value."),
    ):
        command = [sys.executable, "-m", "kprism_model", *words]
        ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (status, f"{sentence}\n")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("device", "gpu", "--conf device gpu: this machine has no such device"),
        ("worklist", "nowhere.txt", "--conf worklist: there is no file 'nowhere.txt'"),
        ("dicomweb_ca", "nowhere.pem", "nowhere.pem: there is no such file"),
        ("cache_mb", "much", "--conf cache_mb much: expected a whole number"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_start_with_a_sentence(
    repository: Path, tmp_path: Path, key: str, value: str, sentence: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["--studies", str(tmp_path), "--port", port, "--conf", key, value]
    ended = launch(repository, "serve", *words, folder=tmp_path)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 3 and sentence in said and "Traceback" not in said and 'File "' not in said


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["viewer", "--studies", "nowhere"], 1, "kprism: --studies: there is no file or folder 'nowhere'\n"),
        (["viewer", "--store", "localhost:8042"], 1, "kprism: address 'localhost:8042': expected one such as http://"),
        (["viewer", "--port", "99999"], 2, "argument --port: expected a number from 1 to 65535, got '99999'."),
        (["import", ".", "--to", "localhost:8042/dicom-web"], 1, "expected a folder, or an address such as http://"),
        (["import", ".", "--to", "ftp://pacs"], 1, "kprism: --to 'ftp://pacs': expected a folder, or an address"),
        (["import", ".", "--to", ""], 1, "kprism: --to '': expected a folder, or an address such as http://"),
    ],
)
def test_wrong_places_are_named_before_anything_is_fetched_or_written(
    repository: Path, tmp_path: Path, words: list[str], status: int, sentence: str
) -> None:
    ended = launch(repository, *words, folder=tmp_path)
    assert ended.returncode == status and sentence in ended.stderr
    assert ended.stderr.count("\n") <= 8 and not list(tmp_path.iterdir())
