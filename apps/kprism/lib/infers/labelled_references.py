# SPDX-License-Identifier: Apache-2.0
"""References for in-context segmentation among the labelled cases of the datastore: those that hold a structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from monailabel.interfaces.datastore import Datastore
from numpy.typing import NDArray

from kprism_model.volumes.slice_map import SliceMap
from lib.datastore import stored_at
from lib.engine import Engine
from lib.errors import NotFoundError, RequestError
from lib.imaging.label_maps import mask_of, values_in
from lib.imaging.label_names import structures, value_names
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import PICTURES, suffix_of
from lib.infers.existing_masks import labels_on
from lib.labelled_cases import LabelledCase, labelled_cases
from lib.learning.reference_encoding import slices_by_area
from lib.request_statistics import RequestStatistics

MAX_LOADED = 8
"""Cases that are read to select the best ones; the newest labels first."""


@dataclass(frozen=True)
class Reference:
    """Slices of one labelled case and where the structure is in them."""

    image_id: str
    image: MedicalImage
    slices: tuple[int, ...]
    masks: tuple[NDArray[np.bool_], ...]


class Loaded(NamedTuple):
    """A case with its image and the structure's mask."""

    case: LabelledCase
    image: MedicalImage
    mask: SliceMap[np.bool_]


class ReferenceFinder:
    """Finds references for one query image, which is never its own reference; they are cut in the query's plane.

    `named` are the ids of the cases to use; if empty, every labelled case may serve. RequestError if a named case does
    not exist, is not labelled, or is the query itself.
    """

    def __init__(
        self,
        engine: Engine,
        datastore: Datastore,
        label_registry: LabelRegistry,
        query: MedicalImage,
        query_id: str | None,
        named: Sequence[str],
        statistics: RequestStatistics,
    ) -> None:
        self._statistics = statistics
        self._engine = engine
        self._label_registry = label_registry
        self._query = query
        self._named = bool(named)
        cases = {case.image_id: case for case in labelled_cases(datastore)}
        for image_id in named:
            if image_id == query_id:
                raise RequestError(f"reference {image_id!r} is the image itself; name other cases")
            if image_id not in cases:
                raise NotFoundError(f"reference {image_id!r} is no labelled case (tag final) of this datastore")
        cases.pop(str(query_id), None)
        self._cases = [cases[image_id] for image_id in named] or sorted(cases.values(), key=self._rank)

    def structures(self) -> list[str]:
        """All structures in the labels of the cases that may serve."""
        return list(dict.fromkeys(name for case in self._cases for name in self._names(case)))

    def find(self, structure: str, count: int, strict: bool) -> list[Reference]:
        """References for a structure: `count` slices in all, or one a case if more cases are named.

        If no cases are named, those most like the query in kind and size are taken. RequestError if there is none, for
        a named case that cannot be read, and if `strict` for a named case without the structure.
        """
        loaded: list[Loaded] = []
        reasons: list[str] = []
        for case in self._cases:
            if structure not in self._names(case):
                if self._named and strict:
                    raise RequestError(f"reference {case.image_id!r} holds {_listed(case.names)}, not {structure!r}")
                continue
            try:
                loaded.append(self._load(case, structure))
            except RequestError as error:
                if self._named:
                    raise
                reasons.append(str(error))
            if len(loaded) == MAX_LOADED and not self._named:
                break
        if not loaded:
            raise RequestError(self._no_reference(structure, reasons))
        if not self._named:
            loaded = sorted(loaded, key=lambda case: self._unlikeness(case.image))[:count]
        shares = [len(part) for part in np.array_split(range(max(count, len(loaded))), len(loaded))]
        return [_reference(case, share) for case, share in zip(loaded, shares, strict=True)]

    def _names(self, case: LabelledCase) -> list[str]:
        return [self._label_registry.canonical(name) for name in case.names]

    def _rank(self, case: LabelledCase) -> tuple[bool, float, str]:
        """Orders cases before they are read: same kind of file as the query, then the newest label."""
        is_picture = suffix_of(case.image) in PICTURES
        return is_picture != (self._query.suffix in PICTURES), -stored_at(case.info), case.image_id

    def _load(self, case: LabelledCase, structure: str) -> Loaded:
        what = f"the label of reference {case.image_id!r}"
        image = self._engine.image(case.image, f"image {case.image_id!r}", self._statistics)
        if self._query.plane is not None:
            image = image.in_plane(self._query.plane)
        labels, file = labels_on(self._engine, case.label, what, image, self._statistics)
        if image.digest == self._query.digest:
            raise RequestError(f"reference {case.image_id!r} is the same picture as the image itself")
        present = values_in(labels)
        try:
            names = value_names(case.info, case.by_hand, present, file)
        except RequestError as error:
            raise RequestError(f"{what}: {error}") from error
        values = structures(names, self._label_registry.canonical).get(structure, ())
        if not present.intersection(values):
            raise RequestError(f"{what} holds no voxel of {structure!r}")
        return Loaded(case, image, mask_of(labels, *values))

    def _unlikeness(self, image: MedicalImage) -> tuple[bool, bool, float, str]:
        """Orders cases: same number of channels, same kind of image, similar size of the slices."""
        extents = [np.prod(candidate.slice_shape) for candidate in (image, self._query)]
        ratio = abs(float(np.log(extents[0] / extents[1])))
        return (
            image.is_colour != self._query.is_colour,
            (image.slices > 1) != (self._query.slices > 1),
            ratio,
            image.name,
        )

    def _no_reference(self, structure: str, reasons: Sequence[str]) -> str:
        if reasons:
            return f"no labelled case can serve as a reference for {structure!r}: {'; '.join(reasons)}"
        known = self.structures()
        there = f"other cases hold {_listed(known)}" if known else "no other case has a label with named structures"
        return f"no labelled case (tag final) holds {structure!r}: {there}. Submit a label for a case with it first"


def _reference(loaded: Loaded, count: int) -> Reference:
    """At most `count` slices, spread evenly over those that show enough of the structure."""
    case, image, mask = loaded
    areas = np.zeros(image.slices, np.int64)
    for number, shown in mask.slices.items():
        areas[number] = np.count_nonzero(shown)
    slices = tuple(slices_by_area(areas, count))
    return Reference(case.image_id, image, slices, tuple(np.ascontiguousarray(mask.on(number)) for number in slices))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "no named structure"
