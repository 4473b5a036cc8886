# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests: where the project and its material lie, a fixed seed, few threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("KPRISM_SHARED", REPOSITORY.parent / "shared")).resolve()


def pytest_configure() -> None:
    """Leave the machine usable: many small operations do not gain from more than two threads."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the project."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the project (or $KPRISM_SHARED), which holds reference values and real images.

    Without it the test is skipped, and fails where CI=true: there it must not pass by being left out.
    """
    if SHARED.is_dir():
        return SHARED
    message = (
        f"This test needs the reference material in {SHARED}, which is not there (KPRISM_SHARED names another place)."
    )
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """Folder of the real labelled datasets, one subfolder each."""
    return shared / "data"
