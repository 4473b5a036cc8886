# SPDX-License-Identifier: Apache-2.0
"""The prompts of a request by slice, as they are kept with the label that comes of it.

A request may cut the image in another plane, or be about one of several volumes. A submitted label is read as acquired
and as a whole, so prompts are numbered like that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kprism_model.volumes.prompts import LocatedClick
from lib.imaging.medical_image import MedicalImage
from lib.infers.scope import filled_slices

SlicePrompts = dict[int, tuple[tuple[int, int, bool], ...]]
"""Slice -> its clicks (row, column, positive)."""


def clicked_slices(clicks: Iterable[LocatedClick], image: MedicalImage) -> SlicePrompts:
    """The slices with clicks, and the clicks of each in their order. `image` is the one that they were located in."""
    whole = _as_acquired(image)
    slices: SlicePrompts = {}
    for click in clicks:
        i, j, k = click.voxel
        number, row, column = whole.locate((i, j, k + image.first))
        slices[number] = (*slices.get(number, ()), (row, column, click.positive))
    return slices


def scribbled_slices(scribbles: NDArray[np.int8], image: MedicalImage) -> SlicePrompts:
    """The slices that are drawn on, without clicks; `scribbles` (i, j, k) is 0 where nothing is drawn."""
    return dict.fromkeys(filled_slices(image.on_whole(scribbles), _as_acquired(image)), ())


def _as_acquired(image: MedicalImage) -> MedicalImage:
    """The whole image, cut in the plane of its acquisition."""
    return replace(image.whole or image, plane=None)
