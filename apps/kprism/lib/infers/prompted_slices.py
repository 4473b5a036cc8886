# SPDX-License-Identifier: Apache-2.0
"""The prompts of a request by slice, as they are kept with the label that comes of it.

A request may cut the image in another plane, or be about one of several volumes. A submitted label is read as acquired
and as a whole, so prompts are numbered like that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from kprism_model.volumes.prompts import LocatedClick
from kprism_model.volumes.slice_map import SliceMap
from lib.imaging.medical_image import MedicalImage

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


def scribbled_slices(scribbles: SliceMap[np.int8], image: MedicalImage) -> SlicePrompts:
    """The slices that are drawn on, without clicks."""
    return dict.fromkeys(image.on_whole(scribbles).turned(_as_acquired(image).orientation).filled, ())


def _as_acquired(image: MedicalImage) -> MedicalImage:
    """The whole image, cut in the plane of its acquisition."""
    return replace(image.whole or image, plane=None)
