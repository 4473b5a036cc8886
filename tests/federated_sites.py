# SPDX-License-Identifier: Apache-2.0
"""Tiny sites with labels, as their servers would have left them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np

from lib.federation.site import Site, open_site
from tests.tiny_network import copy_weights

AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])


def shipped_in(folder: Path) -> dict[str, str]:
    """The settings of sites whose shipped weights are copied into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"model_path": str(copy_weights(folder / "shipped"))}


def make_site(folder: Path, name: str, count: int, names: Mapping[str, int], conf: Mapping[str, str]) -> Site:
    """A site with so many labelled volumes of a block (value 1) and a brighter rod (value 2), where they have names.

    `names` are those of the values. Cases are called NAME-patient0, NAME-patient1, ...
    """
    studies = folder / name
    studies.mkdir(parents=True)
    rng = np.random.default_rng(list(name.encode()))
    cases = [f"{name}-patient{number}" for number in range(count)]
    for case in cases:
        drawn = _volume(rng)
        values = np.where(np.isin(drawn, list(names.values())), drawn, 0).astype(np.uint8)
        image = np.array([100, 150, 190], np.float32)[values] + rng.normal(0, 5, values.shape).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), studies / f"{case}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / f"{case}-label.nii.gz")
    site = open_site(name, studies, conf)
    for case in cases:
        label = folder / f"{case}-label.nii.gz"
        site.submissions.submit(case, label, {"label_names": dict(names)}, by="anna")
    return site


def _volume(rng: np.random.Generator) -> np.ndarray:
    values = np.zeros((64, 64, 3), np.uint8)
    row, column = rng.integers(12, 30, 2)
    values[row - 10 : row + 10, column - 8 : column + 8, 1:] = 1
    rows, columns = np.mgrid[:64, :64]
    row, column = rng.integers(44, 54, 2)
    values[(rows - row) ** 2 + (columns - column) ** 2 < 64] = 2
    return values
