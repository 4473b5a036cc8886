# SPDX-License-Identifier: Apache-2.0
"""Scribbles as 3D Slicer sends them: two segments of an uploaded labelmap, beside the masks that exist already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kprism_model.volumes.slice_map import SliceMap
from lib.engine import Engine
from lib.errors import RequestError
from lib.imaging.label_maps import MAX_LABELS, mask_of
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage
from lib.infers.existing_masks import read_uploaded, uploaded_values
from lib.options import as_text

FOREGROUND_SCRIBBLES = "foreground_scribbles"
BACKGROUND_SCRIBBLES = "background_scribbles"

NO_VALUE = -1
"""Stands for the value of a segment that is not in a labelmap."""


class Scribbled(NamedTuple):
    """A label, its scribbles of 1, -1 and 0, and the mask that they correct."""

    label: str
    scribbles: SliceMap[np.int8]
    mask: SliceMap[np.bool_]


@dataclass(frozen=True)
class ScribbleValues:
    """Values in the uploaded labelmap: of the edited label (none without a mask) and of the scribble segments."""

    label: str
    label_values: tuple[int, ...]
    foreground: tuple[int, ...]
    background: tuple[int, ...]


def read_scribbles(
    params: Mapping[str, Any], label_registry: LabelRegistry, image: MedicalImage, engine: Engine
) -> Scribbled:
    """The scribbles of a request.

    RequestError for a request without labelmap, one that names no scribbles, and a labelmap in which none are drawn.
    """
    upload = params.get("label_file")
    if upload is None:
        raise RequestError("the request has no file 'label'; expected a labelmap with the scribbles")
    labelmap = read_uploaded(upload, image, engine)
    values = read_scribble_values(params, uploaded_values(params, labelmap, label_registry), label_registry)
    table = np.zeros(256, np.int8)
    table[[value for value in values.foreground if value <= MAX_LABELS]] = 1
    table[[value for value in values.background if value <= MAX_LABELS]] = -1
    scribbles = labelmap.labels.mapped(lambda drawn: table[drawn], np.int8)
    if not scribbles.filled:
        raise RequestError(
            f"the uploaded labelmap holds no scribbles for {values.label!r}; draw on the structure and on background"
        )
    return Scribbled(values.label, scribbles, mask_of(labelmap.labels, *(values.label_values or (NO_VALUE,))))


def read_scribble_values(
    params: Mapping[str, Any], values: Mapping[str, tuple[int, ...]], label_registry: LabelRegistry
) -> ScribbleValues:
    """From the values of the labelmap's segments, and Slicer's `selected_label_name`; RequestError if not usable."""
    label = label_registry.canonical(as_text("selected_label_name", params.get("selected_label_name") or ""))
    if not label:
        raise RequestError("selected_label_name is missing; expected the name of the segment to correct")
    if FOREGROUND_SCRIBBLES not in values and BACKGROUND_SCRIBBLES not in values:
        raise RequestError(
            f"label_info names {', '.join(values) or 'no segment'}; "
            f"expected {FOREGROUND_SCRIBBLES!r} or {BACKGROUND_SCRIBBLES!r} too"
        )
    return ScribbleValues(
        label, values.get(label, ()), values.get(FOREGROUND_SCRIBBLES, ()), values.get(BACKGROUND_SCRIBBLES, ())
    )
