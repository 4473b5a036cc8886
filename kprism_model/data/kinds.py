# SPDX-License-Identifier: Apache-2.0
"""Kinds of images, such as "CT, chest", and the classes that can be in each, from the metadata of data sets.

A class can be in a kind of image if two conditions hold. First, anatomy: the kind may show a part of the body in which
a data set has the class (`anatomy.possible_parts`). So a spleen can be in a chest CT, even if a set of chest CT labels
only tumours. Second, modality: a data set has the class in this modality. So a haemorrhage that the network knows only
from CT is not predicted in MRI.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kprism_model.data.anatomy import MICROSCOPY, ImageSet, possible_parts, shown_parts

_REGIONS = {
    "heart": "chest",
    "lung": "chest",
    "liver": "abdomen",
    "kidney": "abdomen",
    "fetal head": "fetus",
    "lumbar spine": "spine",
    "peripheral nerves and vessels": "limbs and neck",
    "neck": "limbs and neck",
}
"""Anatomy -> the region in the name of its kind, if the two differ."""


def kind_name(images: ImageSet) -> str:
    """The kind of images: modality and region, or only the modality for microscopy and unknown anatomy."""
    if images.modality in MICROSCOPY or not images.anatomy:
        return images.modality
    return f"{images.modality}, {_REGIONS.get(images.anatomy, images.anatomy)}"


def kind_names(sets: Iterable[ImageSet]) -> tuple[str, ...]:
    """The kinds of the images of several sets, in alphabetical order."""
    return tuple(sorted({kind_name(images) for images in sets}))


def possible_kinds(sets: Sequence[ImageSet]) -> dict[str, frozenset[str]]:
    """Class name, in lower case -> the kinds of images in which it can be."""
    parts: dict[str, frozenset[str]] = {}
    for images in sets:
        parts[kind_name(images)] = parts.get(kind_name(images), frozenset()) | shown_parts(images)
    possible: dict[str, frozenset[str]] = {}
    for name, where in possible_parts(sets).items():
        modalities = {s.modality for s in sets if name in {known.casefold() for known in s.classes.values()}}
        possible[name] = frozenset(
            kind_name(images) for images in sets if images.modality in modalities and where & parts[kind_name(images)]
        )
    return possible
