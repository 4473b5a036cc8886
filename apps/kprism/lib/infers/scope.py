# SPDX-License-Identifier: Apache-2.0
"""How much of a volume a request is about, and in which plane it is cut: options that both viewers show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kprism_model.orientation import PLANES
from kprism_model.volumes.predictor import Extent
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage
from lib.options import Option

SLICE, RANGE, VOLUME = "this slice", "slices around", "whole volume"

SLICES: dict[str, Option] = {"slices": Option("")}
"""Option: the first and last slice to segment, numbered as in the file. Empty: all, or with prompts as `SCOPE` says."""

SCOPE: dict[str, Option] = {
    "scope": Option(SLICE, choices=(SLICE, RANGE, VOLUME)),
    "slices_around": Option(5, low=1, high=1000),
    **SLICES,
}
"""Options of models with prompts: where to segment. `slices_around` counts on either side of the prompted slices.

`slices` are the first and last slice of the structure, as a user knows them, and overrule `scope`.
"""

CLEAN_UP: dict[str, Option] = {"clean_up": Option(False)}
"""Option: keep the largest part of each structure (and clicked parts) and fill its holes, in three dimensions."""

AS_ACQUIRED = "as acquired"

PLANE: dict[str, Option] = {"plane": Option(AS_ACQUIRED, choices=(AS_ACQUIRED, *PLANES))}
"""Option: the plane that volumes are cut in; by default that of their acquisition (see `SliceOrientation.of`)."""

_RANGE = re.compile(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*")


def in_chosen_plane(options: Mapping[str, Any], image: MedicalImage) -> MedicalImage:
    """The image cut in the plane that the option `plane` names."""
    return image if options["plane"] == AS_ACQUIRED else image.in_plane(options["plane"])


def extent_of(options: Mapping[str, Any], image: MedicalImage, prompted: Sequence[int]) -> Extent:
    """What the options `SCOPE` mean with prompts on the slices `prompted`, of which there is at least one.

    RequestError for a prompt outside the option `slices`.
    """
    text = options["slices"]
    if text.strip():
        first, last = _range_of(text, image)
        for number in prompted:
            if not first <= number <= last:
                where = image.index_of(number)
                raise RequestError(
                    f"slices is {text!r}, but there is a prompt on slice {where}; expected it within them"
                )
        return first, last
    if options["scope"] == SLICE:
        return "slice"
    if options["scope"] == VOLUME:
        return "volume"
    around = options["slices_around"]
    return max(0, min(prompted) - around), min(image.slices - 1, max(prompted) + around)


def slices_of(options: Mapping[str, Any], image: MedicalImage) -> Extent:
    """The slices that the option `slices` names, see `_range_of`; "volume" if it is empty."""
    text = options["slices"]
    return _range_of(text, image) if text.strip() else "volume"


def _range_of(text: str, image: MedicalImage) -> tuple[int, int]:
    """The (first, last) of "12" or "10-25", slices as in the file; RequestError for other texts."""
    match, (first, last) = _RANGE.fullmatch(text), image.indices
    ends = sorted(int(end) for end in match.groups() if end) if match else []
    if not ends or ends[0] < first or ends[-1] > last:
        raise RequestError(
            f"slices is {text!r}; expected a slice like '12' or slices like '10-25', from {first} to {last}"
        )
    numbers = [image.slice_at(end) for end in ends]
    return min(numbers), max(numbers)


def first_index(options: Mapping[str, Any], image: MedicalImage) -> int:
    """The first slice that the option `slices` names; 0 if it names none of the image."""
    match = _RANGE.fullmatch(options["slices"])
    index = int(match[1]) if match else 0
    return index if index < image.grid[2] else 0


def labels_to_clean(options: Mapping[str, Any], labels: Sequence[str]) -> Sequence[str]:
    """The labels to clean up by the option `clean_up`: all or none."""
    return labels if options["clean_up"] else ()
