# SPDX-License-Identifier: Apache-2.0
"""Which tests are slow, and which must run one after the other in one process when several workers share them."""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

SLOW = "slow: trains, or starts processes of its own; left out by ./kprism test --fast"
"""Description of the mark."""

LONGEST = (
    "e2e/viewer",
    "e2e/store",
    "contract",
    "e2e/hosting",
    "interop/test_matrix.py",
    "interop",
    "e2e/test_faults.py",
    "e2e/test_upgrade.py",
    "e2e/test_loop.py",
    "e2e/test_models.py",
    "e2e",
)
"""Folders and files of tests that take longest: workers begin with them, so that none ends long after the others."""

FOLDERS = ("contract", "e2e/viewer", "e2e/store", "e2e/hosting")
"""Folders whose tests share one server: one worker takes all tests of a folder, in their order."""

SLOW_FILES = (
    "unit/test_export.py",
    "unit/test_examples.py",
    "unit/test_pack_training.py",
    "unit/test_active_learner.py",
    "unit/test_training.py",
    "unit/test_finetune.py",
    "unit/test_pretraining.py",
    "unit/test_published_command.py",
    "unit/test_published_processes.py",
    "unit/test_published_training.py",
    "unit/test_federation.py",
    "contract/test_batch.py",
    "interop/test_matrix.py",
)
"""Tests that `--fast` leaves out beside all of `e2e`."""


def arrange(items: list[pytest.Item], folder: Path, *, parallel: bool) -> None:
    """Mark what is slow; for parallel workers, put the longest first.

    `folder` is the folder `tests`; items elsewhere are left alone.
    """
    paths = {item: item.path.relative_to(folder).as_posix() for item in items if item.path.is_relative_to(folder)}
    for item, path in paths.items():
        if path.startswith(("e2e/", *SLOW_FILES)):
            item.add_marker(pytest.mark.slow)
    if parallel:
        items.sort(key=lambda item: rank(paths.get(item, "")))


def rank(path: str) -> int:
    """The place of a test's file in the order of the longest; what is not among them comes last."""
    return next((place for place, start in enumerate(LONGEST) if path.startswith(start)), len(LONGEST))


def group_of(nodeid: str) -> str:
    """The tests that one worker runs together: those of a folder with a shared server, else of a file."""
    path = nodeid.partition("::")[0]
    return next((folder for folder in FOLDERS if path.startswith(f"tests/{folder}/")), path)


class SharedServers(LoadScopeScheduling):
    """Gives each worker whole groups of tests, see `group_of`."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
