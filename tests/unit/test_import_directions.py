# SPDX-License-Identifier: Apache-2.0
"""Which part of the code may import which: the rooms of the app, the packages of the library, and no cycle anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GROUND = {"errors", "options", "files", "imaging", "request_statistics", "routes"}
SERVICES = GROUND | {"datastore", "image_ids", "image_files", "labelled_cases", "engine", "networks"}

APP_RULES: Mapping[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "not_served": set(),
    "request_statistics": set(),
    "options": {"errors"},
    "imaging": {"errors", "options", "files"},
    "image_ids": {"errors"},
    "folder_listing": {"image_ids", "imaging", "not_served"},
    "folder_contents": {"folder_listing", "not_served"},
    "folder_watch": set(),
    "worklist": set(),
    "datastore": {
        "errors",
        "files",
        "imaging",
        "image_ids",
        "not_served",
        "folder_contents",
        "folder_listing",
        "folder_watch",
        "worklist",
    },
    "image_files": {"errors", "imaging", "datastore", "image_ids"},
    "labelled_cases": {"datastore", "image_files", "imaging"},
    "file_checks": {"errors", "imaging"},
    "label_arrivals": set(),
    "folder_store": GROUND
    | {"datastore", "image_ids", "not_served", "folder_contents", "folder_listing", "file_checks", "label_arrivals"},
    "routes": set(),
    "turns": set(),
    "networks": {"routes"},
    "engine": GROUND | {"networks", "turns"},
    "dicom": {
        *("errors", "files", "imaging", "datastore", "image_ids", "not_served", "worklist"),
        *("folder_contents", "folder_listing", "folder_store"),
    },
    "learning": SERVICES,
    "infers": SERVICES | {"learning"},
    "trainers": SERVICES | {"learning"},
    "configs": GROUND | {"dicom", "learning", "trainers", "worklist"},
    "dataset_export": SERVICES | {"learning", "dicom", "configs", "folder_store"},
    "learning_loop": SERVICES | {"learning", "trainers", "configs"},
    "federation": GROUND | {"configs", "dicom", "learning", "learning_loop", "trainers"},
    "api": SERVICES | {"dicom", "learning", "infers", "trainers", "not_served"},
}
"""Room or module of `apps/kprism/lib` -> those that it may import."""

BASICS = {
    "classes",
    "components",
    "files",
    "intensity",
    "metrics",
    "orientation",
    "polygons",
    "preprocess",
    "scribbles",
    "store",
}
PREDICTION = BASICS | {"network", "checkpoint", "image_kind", "queries", "predictor", "window", "windowed"}

MODEL_RULES: Mapping[str, set[str]] = {
    "addresses": set(),
    "classes": set(),
    "components": set(),
    "files": set(),
    "locations": set(),
    "metrics": set(),
    "named_values": set(),
    "orientation": set(),
    "polygons": set(),
    "progress": set(),
    "scribbles": set(),
    "store": set(),
    "network": set(),
    "intensity": set(),
    "preprocess": {"network"},
    "checkpoint": BASICS | {"network"},
    "queries": BASICS | {"network"},
    "image_kind": BASICS | {"network", "queries"},
    "predictor": BASICS | {"network", "queries", "image_kind"},
    "window": {"components", "queries", "predictor"},
    "presets": BASICS | {"locations", "network", "checkpoint", "predictor"},
    "windowed": BASICS | {"network", "queries", "predictor", "window"},
    "losses": {"network"},
    "volumes": PREDICTION | {"data", "losses"},
    "interaction": PREDICTION | {"volumes"},
    "data": PREDICTION | {"named_values", "progress"},
    "evaluation": PREDICTION | {"interaction", "data"},
    "training": PREDICTION | {"interaction", "data", "losses", "named_values", "progress"},
    "export": {"network", "checkpoint", "intensity", "preprocess"},
    "preparation": BASICS | {"data", "named_values", "progress"},
    "published": PREDICTION | {"interaction", "data", "evaluation", "training", "losses", "named_values", "progress"},
}
"""Module or package of `kprism_model` -> those that it may import."""

TREES = [("lib", ROOT / "apps" / "kprism" / "lib", APP_RULES), ("kprism_model", ROOT / "kprism_model", MODEL_RULES)]


def module_name(path: Path, top: str, folder: Path) -> str:
    """The dotted name of a file of the tree `top` in `folder`."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([top, *parts]).removesuffix(".__init__")


def imported(path: Path, top: str, modules: set[str]) -> Iterator[str]:
    """The modules of its own tree that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == top:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else str(node.module)


def imports_of(top: str, folder: Path) -> dict[str, set[str]]:
    """Module -> modules of the tree that it imports."""
    files = {module_name(path, top, folder): path for path in folder.rglob("*.py")}
    return {name: set(imported(path, top, set(files))) - {name} for name, path in files.items()}


@pytest.mark.parametrize(("top", "folder", "rules"), TREES, ids=["app", "library"])
def test_parts_import_only_what_they_may(top: str, folder: Path, rules: Mapping[str, set[str]]) -> None:
    wrong = []
    for module, others in imports_of(top, folder).items():
        part = module.split(".")[1] if "." in module else ""
        if part in ("", "__main__", "cli"):
            continue  # the front doors use everything
        assert part in rules, f"{module}: there is no rule for {part!r}"
        wrong += [
            f"{module} imports {other}"
            for other in sorted(others)
            if "." in other and other.split(".")[1] not in rules[part] | {part}
        ]
    assert not wrong


@pytest.mark.parametrize(("top", "folder"), [tree[:2] for tree in TREES], ids=["app", "library"])
def test_no_module_imports_itself_by_way_of_others(top: str, folder: Path) -> None:
    try:
        list(TopologicalSorter(imports_of(top, folder)).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
