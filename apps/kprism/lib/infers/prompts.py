# SPDX-License-Identifier: Apache-2.0
"""The one place where viewers' requests are turned into clicks, scribbles and structure names.

Viewers send voxel indices [i, j, k] of the original image (its file's own axes, before any reorientation):

- OHIF, model type deepedit: `{"background": [...], "<label>": [...], ...}`, every label that was clicked;
- 3D Slicer, deepedit: `{"<label>": [...], ..., "label": "<current>"}`, every label of the server;
- either, deepgrow: `{"foreground": [...], "background": [...]}`, with `label` from Slicer;
- OHIF, vista3d: `{"points": [...], "point_labels": [1, 0, ...], "label_prompt": [number]}`.

Lists by label do not say in which order the clicks were made; a client that knows it sends all of them once more, in
that order, as `click_order`.

OHIF ignores the JSON of an answer and takes a value for the label's number in the model's `labels`; it can be told
from other clients by the key `restore_label_idx`. 3D Slicer takes value n for the n-th name of the answer's
`label_names` and empties the segments of names that do not occur, so for it and all others values are 1, 2, ... of the
names answered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib.errors import RequestError
from lib.imaging.label_registry import BACKGROUND, LabelRegistry
from lib.imaging.medical_image import MedicalImage, Voxel, describe
from lib.options import as_text

FOREGROUND = "foreground"
FOREGROUND_SCRIBBLES = "foreground_scribbles"
BACKGROUND_SCRIBBLES = "background_scribbles"

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


@dataclass
class Clicks:
    """Clicked voxels by label name, those on background, and the labels that are to be answered.

    `order` holds all of them as they were made, or none where the client does not say.
    """

    labels: dict[str, list[Voxel]] = field(default_factory=dict)
    background: list[Voxel] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    order: list[Voxel] = field(default_factory=list)

    def of(self, label: str) -> tuple[list[Voxel], list[Voxel]]:
        """The clicks on a label, and those on other labels."""
        others = [voxel for name, voxels in self.labels.items() if name != label for voxel in voxels]
        return self.labels.get(label, []), others


def read_clicks(
    params: Mapping[str, Any], book: LabelRegistry, options: Collection[str], image: MedicalImage
) -> Clicks:
    """The clicks of a request; RequestError for voxels outside the image, not integers, too many, or contradictory."""
    clicks = Clicks()
    for name, points in _click_lists(params, book, options).items():
        voxels = _voxels(name, points, image)
        if name.strip().casefold() == BACKGROUND:
            clicks.background = list(dict.fromkeys((*clicks.background, *voxels)))
        elif voxels:
            if name in ("null", "undefined"):  # OHIF's name for no selected row
                raise RequestError("clicks were set while no structure was selected; select one and click again")
            clicks.labels.setdefault(book.canonical(name), []).extend(voxels)
    clicks.labels = {name: list(dict.fromkeys(voxels)) for name, voxels in clicks.labels.items()}
    _check_clicks(clicks)
    clicks.order = _order(params, clicks, image)
    current = params.get("label")
    chosen = book.canonical(current) if isinstance(current, str) else None
    clicks.edited = [chosen] if chosen in clicks.labels else list(clicks.labels)
    return clicks


def _order(params: Mapping[str, Any], clicks: Clicks, image: MedicalImage) -> list[Voxel]:
    """The clicks as they were made; RequestError if `click_order` does not hold just the clicks of the request."""
    points = params.get("click_order")
    if points is None:
        return []
    if not isinstance(points, list):
        raise RequestError(f"click_order is {points!r}; expected a list of clicks [i, j, k]")
    order = _voxels("click_order", points, image)
    made = {*clicks.background, *(voxel for voxels in clicks.labels.values() for voxel in voxels)}
    odd = made.symmetric_difference(order)
    if odd:
        where = "not in click_order" if min(odd) in made else "in click_order, but under no label"
        raise RequestError(f"the click {list(min(odd))} is {where}; expected all clicks of the request, each once")
    return order


def _click_lists(params: Mapping[str, Any], book: LabelRegistry, options: Collection[str]) -> dict[str, Any]:
    """Label name -> list of points as sent.

    `foreground` stands for the current label only where no other label is listed (deepgrow); a structure may have this
    name too.
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
        lists |= _vista3d_lists(params, book)
    return lists


def _vista3d_lists(params: Mapping[str, Any], book: LabelRegistry) -> dict[str, list[Any]]:
    points, signs, prompt = (params.get(key) for key in ("points", "point_labels", "label_prompt"))
    if not isinstance(points, list) or not isinstance(signs, list) or len(points) != len(signs):
        raise RequestError(f"points and point_labels must be lists of one length, got {points!r} and {signs!r}")
    if not isinstance(prompt, list) or len(prompt) != 1:
        raise RequestError(f"label_prompt is {prompt!r}; expected a list with the number of one label")
    unknown = [sign for sign in signs if sign not in (0, 1)]
    if unknown:
        raise RequestError(f"point_labels holds {unknown[0]!r}; expected 1 (foreground) or 0 (background)")
    pairs = list(zip(points, signs, strict=True))
    return {
        book.name(prompt[0]): [point for point, sign in pairs if sign == 1],
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
    if not all(0 <= index < side for index, side in zip((i, j, k), image.grid, strict=True)):
        raise RequestError(
            f"the click [{i}, {j}, {k}] of label {label!r} lies outside {image.name} of {describe(image.grid)} voxels"
        )
    return i, j, k


def _is_whole(index: Any) -> bool:
    return not isinstance(index, bool) and (isinstance(index, int) or (isinstance(index, float) and index.is_integer()))


def _check_clicks(clicks: Clicks) -> None:
    owners: dict[Voxel, str] = {}
    count = 0
    for name, voxels in (*clicks.labels.items(), (BACKGROUND, clicks.background)):
        count += len(voxels)
        for voxel in voxels:
            if voxel in owners:
                raise RequestError(f"voxel {list(voxel)} is clicked both as {owners[voxel]!r} and as {name!r}")
            owners[voxel] = name
    if count > MAX_CLICKS:
        raise RequestError(f"the request holds {count} clicks; expected at most {MAX_CLICKS}")


def read_structures(params: Mapping[str, Any], names: Sequence[str], book: LabelRegistry) -> list[str]:
    """`names`, the option `structures`, else OHIF's `label_prompt`; empty if the request leaves it to the model."""
    prompt = params.get("label_prompt")
    if not names and isinstance(prompt, list):
        names = [book.name(number) for number in prompt]
    return list(dict.fromkeys(book.canonical(name) for name in names))


@dataclass(frozen=True)
class ScribbleValues:
    """Values in the uploaded labelmap: the edited label (0 if it has none yet) and the two scribble segments."""

    label: str
    value: int
    foreground: int
    background: int


def read_scribble_values(params: Mapping[str, Any], values: Mapping[str, int], book: LabelRegistry) -> ScribbleValues:
    """From the values of the labelmap's segments, and Slicer's `selected_label_name`; RequestError if not usable."""
    label = book.canonical(as_text("selected_label_name", params.get("selected_label_name") or ""))
    if not label:
        raise RequestError("selected_label_name is missing; expected the name of the segment to correct")
    if FOREGROUND_SCRIBBLES not in values and BACKGROUND_SCRIBBLES not in values:
        raise RequestError(
            f"label_info names {', '.join(values) or 'no segment'}; "
            f"expected {FOREGROUND_SCRIBBLES!r} or {BACKGROUND_SCRIBBLES!r} too"
        )
    return ScribbleValues(
        label, values.get(label, 0), values.get(FOREGROUND_SCRIBBLES, 0), values.get(BACKGROUND_SCRIBBLES, 0)
    )


def wants_model_numbers(params: Mapping[str, Any]) -> bool:
    """Whether values of the answer must be the numbers of the model's `labels` (OHIF) instead of 1, 2, ..."""
    return "restore_label_idx" in params
