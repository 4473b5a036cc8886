# SPDX-License-Identifier: Apache-2.0
"""Kinds of images, such as "CT, chest", and which classes can be in each, told by the metadata of data sets.

A class can be in a kind of image if both conditions hold: the kind may show a part of the body in which some set has
the class (`anatomy.possible_parts`), and some set has the class in that modality. The first is anatomy: a spleen can be
in a chest CT, though a set of chest CT names only tumours. The second is what the network has learned: a haemorrhage
that it knows from CT alone is not looked for in MRI.
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
"""Anatomy -> the region that its kind is named by, where that is another."""


def kind_name(images: ImageSet) -> str:
    """The kind of images: modality and region, or the modality alone in microscopy and where no more is known."""
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
