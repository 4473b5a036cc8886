# SPDX-License-Identifier: Apache-2.0
"""Masks that exist before a request, on the grid of their image: uploaded with it, or stored in the datastore."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monailabel.interfaces.datastore import Datastore

from kprism_model.volumes.slice_map import SliceMap
from lib.engine import Engine
from lib.errors import RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.label_maps import mask_of, values_in
from lib.imaging.label_names import structures, value_names
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage, describe, planes_of
from lib.infers.request import DrawnPlanes, Source
from lib.labelled_cases import hand_names
from lib.request_statistics import RequestStatistics

logger = logging.getLogger(__name__)


class Labelmap(NamedTuple):
    """The values of a labelmap in the slices of an image, and what its file says about them."""

    labels: SliceMap[np.uint8]
    file: FileLabels | None = None


def read_uploaded(upload: Source | DrawnPlanes, image: MedicalImage, engine: Engine) -> Labelmap:
    """The values of an uploaded labelmap; RequestError if it is not on the image's grid.

    Raw voxels (`.bin`, 8 bits each, i the fastest) have no header.
    """
    if isinstance(upload, DrawnPlanes):
        return Labelmap(_drawn(upload, image))
    if upload.path.suffix != ".bin":
        mask = engine.uploaded_mask(upload.path, upload.name)
        for warning in mask.file_labels.warnings if mask.file_labels else ():
            logger.warning("In %s %s", upload.name, warning)
        return Labelmap(SliceMap.of(image.on_grid(mask, upload.name), image.orientation), mask.file_labels)
    values, grid = np.fromfile(upload.path, np.uint8), (image.whole or image).grid
    if values.size != np.prod(grid):
        raise RequestError(f"{upload.name} holds {values.size} bytes, but {image.name} has {describe(grid)} voxels")
    return Labelmap(SliceMap.of(image.of_whole(values.reshape(grid, order="F")), image.orientation))


def _drawn(upload: DrawnPlanes, image: MedicalImage) -> SliceMap[np.uint8]:
    """Drawn planes in the image's slices; of a part, those of the whole that it holds."""
    planes = upload.labels
    if image.whole is not None:
        own = range(image.first, image.first + image.grid[2])
        slices = {k - image.first: values for k, values in planes.slices.items() if k in own}
        planes = SliceMap(planes_of(image.grid), planes.dtype, slices)
    return planes.turned(image.orientation)


def uploaded_values(
    params: Mapping[str, Any], uploaded: Labelmap, label_registry: LabelRegistry
) -> dict[str, tuple[int, ...]]:
    """Name -> values in an uploaded labelmap, by its own header or the request's `label_info`; empty without names.

    RequestError for names that contradict each other or the labelmap, see `value_names`.
    """
    info = {"label_info": params["label_info"]} if params.get("label_info") is not None else {}
    present = values_in(uploaded.labels)
    return structures(value_names(info, {}, present, uploaded.file, partial=True), label_registry.canonical)


def stored_masks(
    engine: Engine, datastore: Datastore, label_registry: LabelRegistry, image: MedicalImage, image_id: str, tag: str
) -> dict[str, SliceMap[np.bool_]]:
    """Name -> mask of the label that the datastore holds for an image under `tag`; empty if there is none."""
    label_id = datastore.get_label_by_image_id(image_id, tag)
    if not label_id:
        return {}
    what = f"the label of image {image_id!r} with tag {tag!r}"
    labels, file = labels_on(engine, Path(datastore.get_label_uri(label_id, tag)), what, image)
    info = datastore.get_label_info(label_id, tag) or {}
    present = values_in(labels)
    try:
        names = value_names(info, hand_names(datastore).of(image_id), present, file)
    except RequestError as error:
        raise RequestError(f"{what}: {error}") from error
    shown = {value: name for value, name in names.items() if value in present}
    return {name: mask_of(labels, *values) for name, values in structures(shown, label_registry.canonical).items()}


def labels_on(
    engine: Engine, path: Path, what: str, image: MedicalImage, statistics: RequestStatistics | None = None
) -> Labelmap:
    """The values of a label file in the slices of its image, kept in the engine's cache."""
    label = engine.mask(path, what, statistics)
    key = ("labels", label.digest, image.digest, image.orientation)
    labels = engine.cached(key, lambda: SliceMap.of(image.on_grid(label, what), image.orientation))
    return Labelmap(labels, label.file_labels)
