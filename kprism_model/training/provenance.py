# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says about where it comes from: the command, and what the licence of the weights depends on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kprism_model.data.slices import SliceSet


def command_line() -> str:
    """The command that runs, without the folders of the machine."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return "python -m kprism_model " + " ".join(words)


def folder_provenance(folder: Path, weights: Mapping[str, float]) -> dict[str, Any]:
    """Name, modality, licence, number of training cases and sampling weight of a data set on disk."""
    content = json.loads((folder / "dataset.json").read_text())
    name = content["name"]
    return {
        "name": name,
        "modality": content["modality"]["0"],
        "licence": content.get("licence", "not stated"),
        "cases": len(content["training"]),
        "weight": weights.get(name, 1.0),
    }


def set_provenance(slice_set: SliceSet, weights: Mapping[str, float]) -> dict[str, Any]:
    """The same of a data set in a pack."""
    return {
        "name": slice_set.name,
        "modality": slice_set.modality,
        "licence": slice_set.licence,
        "cases": len(np.unique(slice_set.case)),
        "weight": weights.get(slice_set.name, slice_set.weight),
    }
