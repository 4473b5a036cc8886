# SPDX-License-Identifier: Apache-2.0
"""From what a client sends to an `InferRequest`: one function for each kind of request.

All of them first read the options and the image. Then they differ in what the client may send: names of structures,
clicks, or scribbles. RequestError says what cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib.errors import RequestError
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage
from lib.imaging.writing import ResultFormat
from lib.infers.app_context import AppContext
from lib.infers.chosen_volume import in_view, prompted
from lib.infers.clicks import read_clicks
from lib.infers.earlier_references import EarlierReferences
from lib.infers.existing_masks import read_uploaded
from lib.infers.initial_masks import UPLOAD, read_initial_masks
from lib.infers.request import Clicks, InferRequest, InitialMasks, Source
from lib.infers.result import wants_registry_numbers
from lib.infers.scope import extent_of, first_index, in_chosen_plane, slices_of
from lib.infers.scribble_map import read_scribbles
from lib.options import Option, read_options
from lib.request_statistics import RequestStatistics


def resolve_structures(context: AppContext, options: Mapping[str, Option], params: Mapping[str, Any]) -> InferRequest:
    """A request without prompts: names of structures, or none, and the slices to look at."""
    request = _open(context, options, params)
    index = in_view(params, request.image) or first_index(request.options, request.image)
    request = _cut(request, index)
    labels = read_structures(params, request.options["structures"], context.label_registry)
    return replace(request, labels=tuple(labels), extent=slices_of(request.options, request.image))


def resolve_clicks(
    context: AppContext, options: Mapping[str, Option], params: Mapping[str, Any], earlier: EarlierReferences
) -> InferRequest:
    """A request with clicks, or with a mask to propagate. Each click is located here, and nowhere else."""
    request = _open(context, options, params)
    request = _cut(request, _clicked_image(context, options, params, request.image))
    clicks = read_clicks(params, context.label_registry, options, request.image)
    initial_masks = read_initial_masks(context, request, params, clicks.edited, earlier)
    labels = clicks.edited or _labels_without_clicks(clicks, initial_masks, request.options["follow_mask"])
    request = replace(request, labels=labels, clicks=clicks, initial_masks=initial_masks)
    return replace(request, extent=extent_of(request.options, request.image, _prompted_slices(request)))


def resolve_scribbles(context: AppContext, options: Mapping[str, Option], params: Mapping[str, Any]) -> InferRequest:
    """A request with a labelmap that holds scribbles and the mask that they correct."""
    request = _open(context, options, params)
    request = _cut(request, _drawn_image(context, params, request.image))
    with request.statistics.step("read"):
        label, scribbles, mask = read_scribbles(params, context.label_registry, request.image, context.engine)
    return replace(
        request,
        labels=(label,),
        scribbles=scribbles,
        initial_masks=InitialMasks(UPLOAD, {label: mask}),
        extent=extent_of(request.options, request.image, scribbles.filled),
    )


def read_structures(params: Mapping[str, Any], names: Sequence[str], label_registry: LabelRegistry) -> list[str]:
    """`names`, the option `structures`, else OHIF's `label_prompt`; empty if the request leaves it to the model."""
    prompt = params.get("label_prompt")
    if not names and isinstance(prompt, list):
        names = [label_registry.name(number) for number in prompt]
    return list(dict.fromkeys(label_registry.canonical(name) for name in names))


def _open(context: AppContext, options: Mapping[str, Option], params: Mapping[str, Any]) -> InferRequest:
    """What all requests have: the image, the options, the format of the answer, and the networks that answer it."""
    statistics = RequestStatistics()
    source: Source = params["image"]
    values = read_options(options, params)
    with statistics.step("read"):
        image = context.engine.image(source.path, source.name, statistics)
        result_format = ResultFormat.parse(params, image)
    return InferRequest(
        image=image,
        image_id=source.image_id,
        networks=context.engine.networks(),
        options=values,
        result_format=result_format,
        registry_numbers=wants_registry_numbers(params),
        statistics=statistics,
        listener=params.get("listener"),
    )


def _cut(request: InferRequest, index: int) -> InferRequest:
    """The request with its image cut in the plane that it asks for; of several volumes, the one with image k."""
    return replace(request, image=in_chosen_plane(request.options, request.image.part(index)))


def _clicked_image(
    context: AppContext, options: Mapping[str, Option], params: Mapping[str, Any], image: MedicalImage
) -> int:
    """An image k of the volume to segment: one that is clicked on, else in view, else drawn on, else the first."""
    if image.volumes == 1:
        return 0
    clicked = prompted({click.voxel[2] for click in read_clicks(params, context.label_registry, options, image)}, image)
    if clicked is not None:
        return clicked
    return in_view(params, image) if params.get("slice") is not None else _drawn_image(context, params, image)


def _drawn_image(context: AppContext, params: Mapping[str, Any], image: MedicalImage) -> int:
    """An image k of the volume that the uploaded labelmap is drawn on; else in view, else the first."""
    upload = params.get("label_file")
    if image.volumes == 1:
        return 0
    if upload is None:
        return in_view(params, image)
    labels, _ = read_uploaded(upload, image, context.engine)
    found = prompted([image.index_of(number) for number in labels.filled], image)
    return in_view(params, image) if found is None else found


def _labels_without_clicks(clicks: Clicks, initial_masks: InitialMasks, follow_mask: bool) -> tuple[str, ...]:
    """The labels to segment if no label is clicked: those of the initial masks to propagate, or under the clicks."""
    if not clicks.background:
        if follow_mask and initial_masks.masks:
            return tuple(initial_masks.masks)
        raise RequestError("the request holds no clicks; expected voxels [i, j, k] under a label's name")
    labels = initial_masks.at([click.voxel for click in clicks.background])
    if not labels:
        raise RequestError(
            f"all clicks are on background, the first at {list(clicks.background[0].voxel)}, and there is no initial "
            "mask under them; click on the structure first, or set start_from"
        )
    return tuple(labels)


def _prompted_slices(request: InferRequest) -> list[int]:
    """The slices with clicks of the labels or on background, or with an initial mask to propagate."""
    slices = {click.slice for click in request.clicks.background}
    for label in request.labels:
        own = {click.slice for click in request.clicks.labels.get(label, ())}
        if request.options["follow_mask"] and label in request.initial_masks.masks:
            own.update(request.initial_masks.masks[label].filled)
        if not own and not request.clicks.background:
            raise RequestError(f"the mask of {label!r} is empty; expected a mask to propagate, or clicks on the label")
        slices |= own
    return sorted(slices)
