# SPDX-License-Identifier: Apache-2.0
"""Which structures can be in which images, by the parts of the body that the images show.

A label says nothing about structures that nobody annotated: a left ventricle may be labelled without the right one. But
a structure cannot be in an image that does not show its part of the body: there is no hippocampus in a chest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

BODY_PARTS: dict[str, frozenset[str]] = {
    anatomy: frozenset(parts)
    for anatomy, parts in {
        "brain": {"head"},
        "hippocampus": {"head"},
        "neck": {"neck"},
        "peripheral nerves and vessels": {"neck", "limbs"},
        "knee": {"limbs"},
        "limbs and trunk": {"limbs", "chest", "abdomen", "pelvis"},
        "trunk": {"chest", "abdomen", "pelvis"},
        "chest": {"chest", "abdomen"},
        "lung": {"chest", "abdomen"},
        "heart": {"chest", "abdomen"},
        "abdomen": {"chest", "abdomen", "pelvis"},
        "liver": {"chest", "abdomen"},
        "kidney": {"abdomen", "pelvis"},
        "lumbar spine": {"abdomen", "pelvis"},
        "breast": {"breast"},
        "fetal head": {"fetus"},
        "retina": {"retina"},
        "colon": {"colon lumen"},
        "skin": {"skin surface"},
    }.items()
}
"""Anatomy of a data set -> parts of the body that its images may show, including neighbours."""

MICROSCOPY: dict[str, str] = {
    "histopathology": "stained tissue",
    "fluorescence microscopy": "cells",
    "phase contrast microscopy": "cells",
    "electron microscopy": "cell interior",
    "electron microscopy (SEM)": "cell interior",
}
"""Modality -> what its images show, for any organ."""

_SPINE = {"neck", "chest"}  # labelled only in images of the lumbar spine
_BREAST = {"chest"}  # images of the chest may show the breast, but images of the breast do not show the chest
_EXTENDED: dict[str, frozenset[str]] = {
    name: frozenset(parts)
    for name, parts in {
        "nucleus": {"stained tissue", "cells", "cell interior"},
        "cell": {"stained tissue"},
        "vertebra": _SPINE,
        "intervertebral disc": _SPINE,
        "spinal canal": _SPINE,
        "fibroglandular tissue": _BREAST,
        "benign lesion": _BREAST,
        "malignant lesion": _BREAST,
        "common carotid artery": {"chest"},
        "blood vessel": {"head", "chest", "abdomen", "pelvis"},
        "peripheral nerve": {"head", "chest", "abdomen", "pelvis"},
        "soft-tissue sarcoma": {"head", "neck", "breast"},
    }.items()
}
"""Class -> more parts of the body that contain it, even if no data set of these parts labels it."""


class ImageSet(Protocol):
    """Images of one kind with named structures, such as a data set."""

    @property
    def modality(self) -> str:
        """The modality."""

    @property
    def anatomy(self) -> str:
        """The part of the body; empty if it is unknown."""

    @property
    def classes(self) -> Mapping[int, str]:
        """Label index -> class name."""


def shown_parts(images: ImageSet) -> frozenset[str]:
    """The parts of the body that images may show; named by the modality if the anatomy is unknown."""
    if images.modality in MICROSCOPY:
        return frozenset({MICROSCOPY[images.modality]})
    return BODY_PARTS.get(images.anatomy, frozenset({f"images of {images.modality}"}))


def possible_parts(sets: Iterable[ImageSet]) -> dict[str, frozenset[str]]:
    """Class name, in lower case -> the parts of the body that contain it, or that images with it show."""
    parts: dict[str, frozenset[str]] = {}
    for images in sets:
        for name in images.classes.values():
            key = name.casefold()
            parts[key] = parts.get(key, _EXTENDED.get(key, frozenset())) | shown_parts(images)
    return parts


def foreign_classes(own: ImageSet, others: Iterable[ImageSet]) -> list[str]:
    """Classes of other sets that cannot be in images of `own`, in alphabetical order."""
    sets = [own, *others]
    names = {name.casefold(): name for images in sets for name in images.classes.values()}
    here = shown_parts(own)
    return sorted(names[key] for key, parts in possible_parts(sets).items() if not parts & here)
