# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md names files, functions and classes that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PLACES = ("", "apps/kprism", "apps/kprism/lib", "kprism_model")
"""Folders that paths on the page are relative to."""


def defined(source: str) -> set[str]:
    """Names that a module defines: `function`, `Class` and `Class.method`."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_the_page_names_what_exists(repository: Path) -> None:
    page = (repository / "docs" / "architecture.md").read_text()
    paths = set(re.findall(r"`([\w/]+(?:\.py|/))`", page))
    missing = [path for path in paths if not any((repository / place / path).exists() for place in PLACES)]
    assert not missing
    for path, name in re.findall(r"`([\w/]+\.py)` `([\w.]+)`", page):
        file = next(found for place in PLACES if (found := repository / place / path).exists())
        assert name in defined(file.read_text()), f"{path} defines no {name}"
    library = "\n".join(
        file.read_text() for top in ("apps/kprism", "kprism_model") for file in (repository / top).rglob("*.py")
    )
    for name in re.findall(r"`([A-Z]\w+)(?:\.\w+)?`", page):
        assert re.search(rf"^class {name}\b", library, re.MULTILINE), f"no class {name}"
