# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: where the project and its material lie, a fixed seed, few threads; what is missing here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.budget import Budget
from tests.tiers import SLOW, SharedServers, arrange

PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
"""Whether this process is one of several workers."""

REPOSITORY = Path(__file__).resolve().parent.parent
WITHOUT_SHARED = os.environ.get("KPRISM_SHARED") == "none"
SHARED = Path(os.environ.get("KPRISM_SHARED", REPOSITORY.parent / "shared")).resolve()

LACKING = "not run: "
"""How the reason of a test begins that was skipped because something is missing on this machine."""


def lacking(message: str) -> NoReturn:
    """Skip a test that needs what is missing, or fail where CI=true: there it must not pass by being left out."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(LACKING + message)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("campaigns", "tests of any length (./kprism test --campaign)")
    group.addoption("--minutes", type=float, metavar="MINUTES", help="of a campaign; without them, its short form runs")
    group.addoption("--seed", type=int, default=0, metavar="SEED", help="of all that a campaign draws (default: 0)")
    group.addoption("--first", type=int, default=0, metavar="ROUND", help="of a campaign (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    """Two threads, for many small operations do not gain from more; one for a worker and what its tests start."""
    torch.set_num_threads(1 if PARALLEL else min(2, torch.get_num_threads()))
    if PARALLEL:
        os.environ["OMP_NUM_THREADS"] = "1"
    config.addinivalue_line("markers", SLOW)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    arrange(items, Path(__file__).parent, parallel=PARALLEL)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedServers:
    """Parallel workers (`-n`) take groups of tests in the order of the collection."""
    config.option.loadscopereorder = False
    return SharedServers(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every test that something missing has kept from running."""
    skipped: Sequence[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    names: dict[str, list[str]] = {}
    for report in skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        if reason.startswith(LACKING):
            names.setdefault(reason, []).append(report.nodeid)
    for reason, tests in names.items():
        terminalreporter.section(f"{len(tests)} tests {reason}", sep="-")
        for test in sorted(tests):
            terminalreporter.line(test)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Budget:
    """How many rounds a campaign has, and its seed."""
    option = request.config.getoption
    return Budget(option("--minutes"), option("--seed"), option("--first"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the project."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the project (or $KPRISM_SHARED), which holds reference values and real images.

    Without it the test is skipped, and fails where CI=true, unless KPRISM_SHARED=none declares that it is absent.
    """
    if WITHOUT_SHARED:
        pytest.skip(f"{LACKING}KPRISM_SHARED=none declares the reference material absent")
    if not SHARED.is_dir():
        lacking(
            f"this test needs the reference material in {SHARED}, which is not there; KPRISM_SHARED names another "
            "place, or KPRISM_SHARED=none declares it absent"
        )
    return SHARED


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """Folder of the real labelled datasets, one subfolder each."""
    return shared / "data"


@pytest.fixture(scope="session")
def node() -> str:
    """Node.js; without it the tests are skipped, and fail where CI=true."""
    found = shutil.which("node")
    if found is None:
        lacking("the tests of the viewer's modules need Node.js 18 or later, which is not installed (node)")
    return found
