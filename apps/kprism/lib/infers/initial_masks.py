# SPDX-License-Identifier: Apache-2.0
"""The masks that clicks correct. The server keeps none of them: each request says where they come from.

In this order:

1. a labelmap uploaded with the request as `label`. Its own header or `label_info` names its values; without names,
   every voxel that is not 0 belongs to the clicked label;
2. the option `start_from`: the label that the datastore holds for the image, submitted (tag final) or a draft (tag
   original), or the answer of `semantic`, which then includes clicked structures that only an earlier network knew;
3. none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import DefaultLabelTag

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.label_maps import mask_of, values_in
from lib.imaging.label_registry import LabelRegistry
from lib.infers.app_context import AppContext
from lib.infers.class_segmentation import PRESENCE, ClassSegmentation
from lib.infers.earlier_references import EarlierReferences
from lib.infers.existing_masks import read_uploaded, stored_masks, uploaded_values
from lib.infers.request import NOTHING, InferRequest, InitialMasks
from lib.infers.routed_segmentation import RoutedSegmentation
from lib.infers.structure_references import StructureReferences

FINAL, ORIGINAL, SEMANTIC = "final label", "original label", "semantic"
SOURCES = (NOTHING, FINAL, ORIGINAL, SEMANTIC)
"""Choices of the option `start_from`."""

UPLOAD = "uploaded label"

TAGS = {FINAL: DefaultLabelTag.FINAL.value, ORIGINAL: DefaultLabelTag.ORIGINAL.value}

Masks = dict[str, SliceMap[np.bool_]]
"""Label -> its mask."""


def read_initial_masks(
    context: AppContext,
    request: InferRequest,
    params: Mapping[str, Any],
    clicked: Sequence[str],
    earlier: EarlierReferences,
) -> InitialMasks:
    """The initial masks of a request whose image and options are read already.

    `clicked` are the labels that an uploaded mask without names may belong to: exactly one.
    """
    source = request.options["start_from"]
    if params.get("label_file") is not None:
        return InitialMasks(UPLOAD, _uploaded(context, request, params, clicked))
    if source in TAGS:
        return InitialMasks(source, _stored(context, request, source))
    if source == SEMANTIC:
        return InitialMasks(source, _semantic(context, request, clicked, earlier))
    return InitialMasks()


def _uploaded(context: AppContext, request: InferRequest, params: Mapping[str, Any], clicked: Sequence[str]) -> Masks:
    upload = params["label_file"]
    with request.statistics.step("read"):
        uploaded = read_uploaded(upload, request.image, context.engine)
    values = uploaded_values(params, uploaded, context.label_registry)
    if values:
        return {name: mask_of(uploaded.labels, *own) for name, own in values.items()}
    drawn = uploaded.labels.mapped(lambda values: values > 0, np.bool_)
    return {_only_label(params, context.label_registry, clicked, upload.name): drawn}


def _only_label(
    params: Mapping[str, Any], label_registry: LabelRegistry, clicked: Sequence[str], upload_name: str
) -> str:
    """The label of an uploaded mask without names: the one that is clicked, else the client's current one."""
    current = params.get("label")
    candidates = list(clicked) or ([label_registry.canonical(current)] if isinstance(current, str) else [])
    if len(candidates) != 1:
        raise RequestError(
            f"{upload_name} comes without label_info, so it must be of one label, but the request is about "
            f"{', '.join(candidates) or 'none'}"
        )
    return candidates[0]


def _stored(context: AppContext, request: InferRequest, source: str) -> Masks:
    image, image_id = request.image, request.image_id
    if image_id is None:
        raise RequestError(f"start_from is {source!r}, but {image.name} is not in the datastore")
    with request.statistics.step("read"):
        return stored_masks(context.engine, context.datastore, context.label_registry, image, image_id, TAGS[source])


def _semantic(context: AppContext, request: InferRequest, clicked: Sequence[str], earlier: EarlierReferences) -> Masks:
    networks = request.networks
    shipped = ClassSegmentation(context.engine, networks.shipped, request.image, request.statistics, presence=PRESENCE)
    present = RoutedSegmentation(networks, shipped).search(_earlier_references(request, clicked, earlier))
    values = values_in(present.labels)
    return {name: mask_of(present.labels, value) for value, name in enumerate(present.names, 1) if value in values}


def _earlier_references(
    request: InferRequest, clicked: Sequence[str], earlier: EarlierReferences
) -> dict[str, StructureReferences]:
    """References for clicked structures that only an earlier network knew; without any they get no initial mask."""
    networks = request.networks
    unknown = {name for name in clicked if name not in networks.semantic_classes}
    names = [name for name in earlier.names(networks) if name in unknown] if unknown else []
    try:
        return earlier.find(request, names)
    except RequestError:
        return {}
