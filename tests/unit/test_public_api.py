# SPDX-License-Identifier: Apache-2.0
"""The library as others import it: lazy names, the shipped weights by their name, a checkpoint by its path."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kprism_model as km
from kprism_model.presets import preset_paths


def test_importing_the_package_does_not_import_its_dependencies(repository: Path) -> None:
    heavy = {"torch", "numpy", "scipy", "safetensors", "PIL", "nibabel"}
    code = f"import sys, kprism_model; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", km.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(km, name) is not None
    assert name in dir(km)


def test_type_checkers_and_python_find_the_same_names() -> None:
    tree = ast.parse(Path(str(km.__file__)).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name: f"kprism_model.{module}" for name, module in km._MODULES.items()} == typed
    assert {*typed, "__version__"} == set(km.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'kprism_model' has no attribute 'nothing'"):
        km.nothing  # noqa: B018 - getting it is the test


def test_the_shipped_weights_segment_a_sample(repository: Path) -> None:
    image = np.asarray(Image.open(repository / "sample-datastore" / "lung2_axial17.png"))
    predictor = km.load("small")
    predictor.set_image(km.scale_intensity(image))
    clicks = [km.Click(181, 179, True), km.Click(181, 128, False)]
    mask = predictor.predict(clicks=clicks).mask
    assert mask.shape == image.shape[:2]
    assert mask[181, 179] and not mask[181, 128]
    assert 0 < mask.mean() < 0.1


def test_a_path_loads_with_and_without_suffix() -> None:
    path = preset_paths()["small"]
    names = {len(km.load(file).registry) for file in (path, path.with_suffix(""), str(path))}
    assert names == {len(km.load("small").registry)}


def test_unknown_weights_are_named_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown weights 'smal': expected 'small' or the path of a checkpoint"):
        km.load("smal")
    with pytest.raises(ValueError, match="there is no checkpoint file"):
        km.load(tmp_path / "none.safetensors")
