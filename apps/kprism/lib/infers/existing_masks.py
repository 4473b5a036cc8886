# SPDX-License-Identifier: Apache-2.0
"""Masks that exist before a request, on the grid of their image: uploaded with it, or stored in the datastore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore

from kprism_model.volumes.slice_map import SliceMap
from lib.datastore import hand_names
from lib.engine import Engine
from lib.errors import RequestError
from lib.imaging.label_maps import mask_of, values_in
from lib.imaging.label_registry import LabelRegistry, label_values
from lib.imaging.medical_image import MedicalImage, describe, planes_of
from lib.infers.request import DrawnPlanes, Source
from lib.request_statistics import RequestStatistics


def read_uploaded(upload: Source | DrawnPlanes, image: MedicalImage, engine: Engine) -> SliceMap[np.uint8]:
    """The values of an uploaded labelmap; RequestError if it is not on the image's grid.

    Raw voxels (`.bin`, 8 bits each, i the fastest) have no header.
    """
    if isinstance(upload, DrawnPlanes):
        return _drawn(upload, image)
    if upload.path.suffix != ".bin":
        mask = engine.uploaded_mask(upload.path, upload.name)
        return SliceMap.of(image.on_grid(mask, upload.name), image.orientation)
    values, grid = np.fromfile(upload.path, np.uint8), (image.whole or image).grid
    if values.size != np.prod(grid):
        raise RequestError(f"{upload.name} holds {values.size} bytes, but {image.name} has {describe(grid)} voxels")
    return SliceMap.of(image.of_whole(values.reshape(grid, order="F")), image.orientation)


def _drawn(upload: DrawnPlanes, image: MedicalImage) -> SliceMap[np.uint8]:
    """Drawn planes in the image's slices; of a part, those of the whole that it holds."""
    planes = upload.labels
    if image.whole is not None:
        own = range(image.first, image.first + image.grid[2])
        slices = {k - image.first: values for k, values in planes.slices.items() if k in own}
        planes = SliceMap(planes_of(image.grid), planes.dtype, slices)
    return planes.turned(image.orientation)


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
) -> dict[str, SliceMap[np.bool_]]:
    """Name -> mask of the label that the datastore holds for an image under `tag`; empty if there is none."""
    label_id = datastore.get_label_by_image_id(image_id, tag)
    if not label_id:
        return {}
    what = f"the label of image {image_id!r} with tag {tag!r}"
    labels = labels_on(engine, Path(datastore.get_label_uri(label_id, tag)), what, image)
    info = datastore.get_label_info(label_id, tag) or {}
    present = values_in(labels)
    values = label_values(info, hand_names(datastore).of(image_id), sorted(present))
    shown = {name: value for name, value in values.items() if value in present}
    return {label_registry.canonical(name): mask_of(labels, value) for name, value in shown.items()}


def labels_on(
    engine: Engine, path: Path, what: str, image: MedicalImage, statistics: RequestStatistics | None = None
) -> SliceMap[np.uint8]:
    """The values of a label file in the slices of its image, kept in the engine's cache."""
    label = engine.mask(path, what, statistics)
    key = ("labels", label.digest, image.digest, image.orientation)
    return engine.cached(key, lambda: SliceMap.of(image.on_grid(label, what), image.orientation))
