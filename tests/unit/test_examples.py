# SPDX-License-Identifier: Apache-2.0
"""The example notebook runs, shows its pictures, and is stored with its results."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks.places import ROOT

NOTEBOOK = ROOT / "examples" / "library.ipynb"


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many results of a notebook are pictures."""
    results = [result for cell in notebook.cells for result in cell.get("outputs", [])]
    assert not [result for result in results if result.output_type == "error"]
    return sum("image/jpeg" in result.get("data", {}) for result in results)


def test_the_notebook_runs_anew_and_is_stored_with_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "examples").mkdir()
    shutil.copytree(ROOT / "sample-datastore", tmp_path / "sample-datastore")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path / "examples"}}
    )
    client.execute()
    assert pictures(fresh) == pictures(stored) == 4
    assert all(cell.execution_count for cell in stored.cells if cell.cell_type == "code")
