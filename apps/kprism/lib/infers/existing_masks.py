# SPDX-License-Identifier: Apache-2.0
"""Masks that exist before a request, on the grid of their image: uploaded with it, or stored in the datastore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from numpy.typing import NDArray

from lib.datastore import hand_names
from lib.engine import Engine
from lib.errors import RequestError
from lib.imaging.label_registry import LabelRegistry, label_values
from lib.imaging.medical_image import MedicalImage, describe
from lib.imaging.reading import read_mask


def read_uploaded(path: Path, name: str, image: MedicalImage, limit: int) -> NDArray[np.uint8]:
    """The values (i, j, k) of an uploaded labelmap; raw voxels (`.bin`, 8 bits each, i the fastest) have no header."""
    if path.suffix != ".bin":
        return image.on_grid(read_mask(path, name, limit), name)
    values, grid = np.fromfile(path, np.uint8), (image.whole or image).grid
    if values.size != np.prod(grid):
        raise RequestError(f"{name} holds {values.size} bytes, but {image.name} has {describe(grid)} voxels")
    return image.of_whole(values.reshape(grid, order="F"))


def uploaded_values(params: Mapping[str, Any], label_registry: LabelRegistry) -> dict[str, int]:
    """Name -> value in an uploaded labelmap: `label_info`, [{"name", "id"}] as 3D Slicer sends it; may be missing."""
    info = params.get("label_info")
    if info is None:
        return {}
    if not isinstance(info, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in info):
        raise RequestError(f'label_info is {info!r}; expected a list of {{"name": ..., "id": ...}}, one a segment')
    values: dict[str, int] = {}
    for position, entry in enumerate(info, 1):
        number = entry.get("id", position)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 255:
            raise RequestError(f"label_info gives segment {entry['name']!r} the id {number!r}; expected 1 to 255")
        values[label_registry.canonical(entry["name"])] = number
    return values


def stored_masks(
    engine: Engine, datastore: Datastore, label_registry: LabelRegistry, image: MedicalImage, image_id: str, tag: str
) -> dict[str, NDArray[np.bool_]]:
    """Name -> mask (i, j, k) of the label that the datastore holds for an image under `tag`; empty if there is none."""
    label_id = datastore.get_label_by_image_id(image_id, tag)
    if not label_id:
        return {}
    what = f"the label of image {image_id!r} with tag {tag!r}"
    labels = image.on_grid(engine.mask(Path(datastore.get_label_uri(label_id, tag)), what), what)
    info = datastore.get_label_info(label_id, tag) or {}
    present = [int(value) for value in np.unique(labels) if value]
    values = label_values(info, hand_names(datastore).of(image_id), present)
    return {label_registry.canonical(name): labels == value for name, value in values.items() if value in present}
