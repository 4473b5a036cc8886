# SPDX-License-Identifier: Apache-2.0
"""How much of a volume a request is about, as options that both viewers show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.volumes.predictor import Extent
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage
from lib.options import Option

SLICE, RANGE, VOLUME = "this slice", "slices around", "whole volume"

SCOPE: dict[str, Option] = {
    "scope": Option(SLICE, choices=(SLICE, RANGE, VOLUME)),
    "slices_around": Option(5, low=1, high=1000),
}
"""Options of models with prompts: where to answer. `slices_around` counts on either side of the prompted slices."""

SLICES: dict[str, Option] = {"slices": Option("")}
"""Option of models without prompts: the first and last slice to look at, as the file counts them; empty: all."""

CLEAN_UP: dict[str, Option] = {"clean_up": Option(False)}
"""Keep the largest part of each structure (and those that are clicked) and fill its holes, in three dimensions."""

_RANGE = re.compile(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*")


def extent_of(options: Mapping[str, Any], image: MedicalImage, prompted: Iterable[int]) -> Extent:
    """What `scope` means with prompts on these slices."""
    if options["scope"] == SLICE:
        return "slice"
    if options["scope"] == VOLUME:
        return "volume"
    numbers, around = list(prompted), options["slices_around"]
    return max(0, min(numbers) - around), min(image.slices - 1, max(numbers) + around)


def range_of(options: Mapping[str, Any], image: MedicalImage) -> tuple[int, int] | None:
    """The slices that `slices` names, "12" or "10-25", as (first, last); None for all of them."""
    text = options["slices"]
    if not text.strip():
        return None
    found, last = _RANGE.fullmatch(text), image.slices - 1
    ends = sorted(int(end) for end in found.groups() if end) if found else []
    if not ends or ends[-1] > last:
        raise RequestError(f"slices is {text!r}; expected a slice like '12' or slices like '10-25', from 0 to {last}")
    numbers = [image.slice_at(end) for end in ends]
    return min(numbers), max(numbers)


def to_clean(options: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the structures `names` that are to be cleaned up: all or none."""
    return list(names) if options["clean_up"] else []


def filled_slices(mask: NDArray[Any], image: MedicalImage) -> list[int]:
    """The slices on which a map (i, j, k) holds something."""
    return [int(number) for number in np.flatnonzero(image.to_slices(mask).any(axis=(1, 2)))]
