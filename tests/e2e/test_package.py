# SPDX-License-Identifier: Apache-2.0
"""What `pip install .` installs: all of the library and the app, and commands that work without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

APP_PARTS = ("lib", "main.py", "model", "page", "tools", "viewer")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without a network in a copy, because a build writes into its source."""
    source = tmp_path_factory.mktemp("source")
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(repository / name, source)
    shutil.copytree(repository / "kprism_model", source / "kprism_model", ignore=no_caches)
    for name in APP_PARTS:
        path, copy = repository / "apps" / "kprism" / name, source / "apps" / "kprism" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, copy, ignore=no_caches) if path.is_dir() else shutil.copy(path, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", source, source]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [path] = source.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `site-packages` with the wheel's files."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the installed package, in another folder than the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def files_in(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)) for path in paths}


def test_nothing_of_the_library_and_the_app_is_left_out(repository: Path, installed: Path) -> None:
    assert files_in(installed / "kprism_model") == files_in(repository / "kprism_model")
    app = {file for file in files_in(repository / "apps" / "kprism") if Path(file).parts[0] in APP_PARTS}
    assert files_in(installed / "kprism_app") == app


def test_the_command_is_declared(installed: Path) -> None:
    [entry_points] = installed.glob("*.dist-info/entry_points.txt")
    assert "kprism = kprism_model.cli.main:main" in entry_points.read_text()


def test_the_library_finds_its_weights(installed: Path, tmp_path: Path) -> None:
    code = "import kprism_model as km; print(km.__file__, len(km.load('small').registry))"
    done = run(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    file, classes = done.stdout.split()
    assert Path(file).is_relative_to(installed)
    assert int(classes) > 0


def test_commands_of_the_app_work(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "-m", "kprism_model", "versions", "--folder", str(tmp_path / "none"), "list")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("*    0  shipped")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["serve"], "kprism: --studies is needed: the sample studies are not part of the installed package."),
        (["test"], "kprism: test: the tests are not part of the installed package; run them in a checkout."),
    ],
)
def test_commands_that_need_the_checkout_say_so(
    words: list[str], sentence: str, installed: Path, tmp_path: Path
) -> None:
    done = run(installed, tmp_path, "-m", "kprism_model", *words)
    assert (done.returncode, done.stderr.strip()) == (1, sentence)
