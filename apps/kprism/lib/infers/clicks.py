# SPDX-License-Identifier: Apache-2.0
"""The clicks of a request, as viewers send them, read and located in the image.

Viewers send voxel indices [i, j, k] of the original image (its file's own axes, before any reorientation):

- OHIF, model type deepedit: `{"background": [...], "<label>": [...], ...}`, every label that was clicked;
- 3D Slicer, deepedit: `{"<label>": [...], ..., "label": "<current>"}`, every label of the server;
- both, deepgrow: `{"foreground": [...], "background": [...]}`, with `label` from Slicer;
- OHIF, vista3d: `{"points": [...], "point_labels": [1, 0, ...], "label_prompt": [number]}`.

Lists by label do not say in which order the clicks were made. A client that knows the order sends all clicks once more,
in that order, as `click_order`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kprism_model.volumes.prompts import LocatedClick
from lib.errors import RequestError
from lib.imaging.label_registry import BACKGROUND, LabelRegistry
from lib.imaging.medical_image import MedicalImage, Voxel, describe
from lib.infers.request import Clicks

FOREGROUND = "foreground"

MAX_CLICKS = 1024
"""Clicks in one request."""

PROTOCOL = frozenset(
    # what MONAI Label itself adds, then what clients send
    {"model", "image", "description", "device", "logging", "client_id", "label", "label_tag", "save_label"}
    | {"result_extension", "result_dtype", "result_compress", "result_write_to_file", "restore_label_idx"}
    | {"slice", "roi", "reset_state", "points", "point_labels", "label_prompt", "label_info", "selected_label_name"}
    | {"click_order"}
)
"""Keys of requests that are not names of labels, apart from a model's options."""


def read_clicks(
    params: Mapping[str, Any], label_registry: LabelRegistry, options: Collection[str], image: MedicalImage
) -> Clicks:
    """The clicks of a request; `options` are the keys of `params` that are not names of labels.

    RequestError for voxels outside the image, indices that are not integers, too many clicks, and contradictions.
    """
    labels: dict[str, list[Voxel]] = {}
    background: list[Voxel] = []
    for name, points in _click_lists(params, label_registry, options).items():
        voxels = _voxels(name, points, image)
        if name.strip().casefold() == BACKGROUND:
            background += voxels
        elif voxels:
            if name in ("null", "undefined"):  # OHIF's name if no row is selected
                raise RequestError("clicks were set while no structure was selected; select one and click again")
            labels.setdefault(label_registry.canonical(name), []).extend(voxels)
    by_label = {name: _located(voxels, True, image) for name, voxels in labels.items()}
    on_background = _located(background, False, image)
    _check_clicks({**by_label, BACKGROUND: on_background})
    current = params.get("label")
    selected = label_registry.canonical(current) if isinstance(current, str) else None
    edited = (selected,) if selected in by_label else tuple(by_label)
    clicks = Clicks(by_label, on_background, edited)
    return replace(clicks, order=_order(params, {click.voxel for click in clicks}, image))


def _located(voxels: Sequence[Voxel], positive: bool, image: MedicalImage) -> tuple[LocatedClick, ...]:
    """The clicks, each voxel once."""
    return tuple(LocatedClick(voxel, positive, *image.locate(voxel)) for voxel in dict.fromkeys(voxels))


def _order(params: Mapping[str, Any], clicked: set[Voxel], image: MedicalImage) -> dict[Voxel, int]:
    """The place of each click in `click_order`; RequestError if that does not hold exactly the clicked voxels."""
    points = params.get("click_order")
    if points is None:
        return {}
    if not isinstance(points, list):
        raise RequestError(f"click_order is {points!r}; expected a list of clicks [i, j, k]")
    order = _voxels("click_order", points, image)
    different = clicked.symmetric_difference(order)
    if different:
        voxel = min(different)
        where = "not in click_order" if voxel in clicked else "in click_order, but under no label"
        raise RequestError(f"the click {list(voxel)} is {where}; expected all clicks of the request, each once")
    return {voxel: place for place, voxel in enumerate(order)}


def _click_lists(params: Mapping[str, Any], label_registry: LabelRegistry, options: Collection[str]) -> dict[str, Any]:
    """Label name -> list of points as sent.

    `foreground` stands for the current label only if no other label is listed (deepgrow), because a structure may have
    this name too.
    """
    lists = {
        name: value
        for name, value in params.items()
        if name not in PROTOCOL and name not in options and isinstance(value, list)
    }
    current = params.get("label")
    deepgrow = lists.keys() <= {FOREGROUND, BACKGROUND} and lists.get(FOREGROUND)
    if deepgrow and isinstance(current, str) and current != BACKGROUND:
        lists[current] = lists.pop(FOREGROUND)
    if params.get("points") and not any(lists.values()):
        lists |= _vista3d_lists(params, label_registry)
    return lists


def _vista3d_lists(params: Mapping[str, Any], label_registry: LabelRegistry) -> dict[str, list[Any]]:
    points, signs, prompt = (params.get(key) for key in ("points", "point_labels", "label_prompt"))
    if not isinstance(points, list) or not isinstance(signs, list) or len(points) != len(signs):
        raise RequestError(f"points and point_labels must be lists of the same length, got {points!r} and {signs!r}")
    if not isinstance(prompt, list) or len(prompt) != 1:
        raise RequestError(f"label_prompt is {prompt!r}; expected a list with the number of one label")
    unknown = [sign for sign in signs if sign not in (0, 1)]
    if unknown:
        raise RequestError(f"point_labels holds {unknown[0]!r}; expected 1 (foreground) or 0 (background)")
    pairs = list(zip(points, signs, strict=True))
    return {
        label_registry.name(prompt[0]): [point for point, sign in pairs if sign == 1],
        BACKGROUND: [point for point, sign in pairs if sign == 0],
    }


def _voxels(label: str, points: Sequence[Any], image: MedicalImage) -> list[Voxel]:
    if len(points) > MAX_CLICKS:
        raise RequestError(f"label {label!r} has {len(points)} clicks; expected at most {MAX_CLICKS}")
    return list(dict.fromkeys(_voxel(label, point, image) for point in points))


def _voxel(label: str, point: Any, image: MedicalImage) -> Voxel:
    """A click [i, j, k] of an image, or [i, j] of a picture."""
    length_ok = isinstance(point, list) and (len(point) == 3 or (len(point) == 2 and image.grid[2] == 1))
    if not length_ok or not all(_is_whole(index) for index in point):
        raise RequestError(f"a click of label {label!r} is {point!r}; expected three whole voxel indices [i, j, k]")
    i, j, k = (int(index) for index in (*point, 0)[:3])
    voxel = i, j, k - image.first
    if not all(0 <= index < side for index, side in zip(voxel, image.grid, strict=True)):
        raise RequestError(
            f"the click [{i}, {j}, {k}] of label {label!r} lies outside {image.name} of {describe(image.grid)} voxels"
        )
    return voxel


def _is_whole(index: Any) -> bool:
    return not isinstance(index, bool) and (isinstance(index, int) or (isinstance(index, float) and index.is_integer()))


def _check_clicks(clicks: Mapping[str, Sequence[LocatedClick]]) -> None:
    """RequestError if a voxel is clicked as two labels, or if the labels together have too many clicks."""
    owners: dict[Voxel, str] = {}
    for name, own in clicks.items():
        for click in own:
            if click.voxel in owners:
                raise RequestError(
                    f"voxel {list(click.voxel)} is clicked both as {owners[click.voxel]!r} and as {name!r}"
                )
            owners[click.voxel] = name
    if len(owners) > MAX_CLICKS:
        raise RequestError(f"the request holds {len(owners)} clicks; expected at most {MAX_CLICKS}")
