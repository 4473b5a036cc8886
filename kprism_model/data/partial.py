# SPDX-License-Identifier: Apache-2.0
"""Partially labelled cases: a case says something only about the structures that were annotated in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.slices import SliceSet, SliceStore, to_canvas
from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.intensity import Slices
from kprism_model.network.config import SIZE_MULTIPLE
from kprism_model.preprocess import Geometry, evenly_spaced

MAXIMUM_SLICES = 64
"""Largest number of slices of one case that are trained on."""


@dataclass(frozen=True, eq=False)
class AnnotatedCase:
    """A picture or volume with the structures that were annotated in it.

    images: float32 (slice, row, column) or (slice, row, column, 3) in [0, 1]. labels: uint8 (slice, row, column).
    structures: name -> value in `labels`. A slice without the value does not show that structure; other structures may
    be anywhere. Cases of one `patient` must be in the same split. ValueError for shapes that do not match, no
    structure, or values outside 1 to 255.
    """

    name: str
    patient: str
    images: Slices
    labels: NDArray[np.uint8]
    structures: Mapping[str, int]

    def __post_init__(self) -> None:
        """Refuse cases that cannot be trained on, naming the case."""
        if self.labels.ndim != 3 or self.images.shape[:3] != self.labels.shape or len(self.images.shape) not in (3, 4):
            raise ValueError(
                f"case {self.name}: images of shape {self.images.shape} and labels of shape {self.labels.shape}; "
                "expected (slice, row, column), for images also (slice, row, column, 3)"
            )
        if not self.structures or not all(1 <= value <= 255 for value in self.structures.values()):
            raise ValueError(
                f"case {self.name}: structures must map names to values from 1 to 255, got {dict(self.structures)}"
            )

    def mask(self, structure: str) -> NDArray[np.bool_]:
        """Where a structure is, bool (slice, row, column)."""
        mask: NDArray[np.bool_] = self.labels == self.structures[structure]
        return mask

    def shown(self, structure: str, minimum_pixels: int = 1) -> NDArray[np.int64]:
        """Numbers of the slices that show at least `minimum_pixels` pixels of a structure."""
        return np.flatnonzero(self.mask(structure).sum(axis=(1, 2)) >= minimum_pixels)

    def picture(self, number: int) -> NDArray[Any]:
        """One slice, contiguous in memory."""
        return np.ascontiguousarray(self.images[number])


class StoreBuilder:
    """Makes a `SliceStore` of annotated cases, with one case in memory at a time.

    Cases with the same annotated structures form one data set of the store. So a structure never counts as absent in a
    case that says nothing about it.
    """

    def __init__(self, folder: Path, size: int, *, maximum_slices: int = MAXIMUM_SLICES) -> None:
        if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
            raise ValueError(f"the size of the slices must be a multiple of {SIZE_MULTIPLE}, got {size}")
        self.size = size
        self._folder, self._maximum = folder, maximum_slices
        self._sets: dict[tuple[str, ...], _PartialSet] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, case: AnnotatedCase) -> None:
        """Add a case; ValueError if no slice of it shows enough of a structure to learn from."""
        names = tuple(sorted(case.structures, key=str.casefold))
        chosen = training_slices(case, self._maximum)
        geometry = Geometry.fit((case.labels.shape[1], case.labels.shape[2]), self.size)
        rows = [_shrink(case, number, names, geometry, self.size) for number in chosen]
        if max(max(row.pixels) for row in rows) < MINIMUM_PIXELS:
            raise ValueError(
                f"case {case.name}: {', '.join(names)} cover fewer than {MINIMUM_PIXELS} pixels of every slice "
                f"at {self.size} x {self.size}, too few to learn from"
            )
        if names not in self._sets:
            stem = self._folder / f"slices{len(self._sets)}"
            self._sets[names] = _PartialSet(names, stem)
        self._sets[names].append(case, rows)

    def store(self) -> SliceStore:
        """The store of all added cases; ValueError if there are none."""
        if not self._sets:
            raise ValueError("no case was added; expected one or more to learn from")
        sets = tuple(part.slice_set(self.size) for part in self._sets.values())
        return SliceStore(self._folder, "training", self.size, sets)


def training_slices(case: AnnotatedCase, maximum: int) -> list[int]:
    """At most `maximum` slices, evenly spaced: those that show a structure, and as many that show none."""
    shows = np.isin(case.labels, list(case.structures.values())).any(axis=(1, 2))
    shown, empty = np.flatnonzero(shows), np.flatnonzero(~shows)
    kept = evenly_spaced(shown, maximum)
    return sorted([*kept, *evenly_spaced(empty, min(len(kept), maximum - len(kept)))])


class _Row(NamedTuple):
    """A slice on the canvas: image (size, size, 3), labels (size, size), pixels by structure, slice number, content."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    pixels: list[int]
    number: int
    content: tuple[int, int]


def _shrink(case: AnnotatedCase, number: int, names: Sequence[str], geometry: Geometry, size: int) -> _Row:
    """One slice; values in its labels are 1, 2, ... in the order of `names`."""
    height, width = geometry.resized
    order = np.zeros(256, np.uint8)
    order[[case.structures[name] for name in names]] = np.arange(1, len(names) + 1)
    image, labels = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    values = range(1, len(names) + 1)
    picture, small, pixels = to_canvas(case.picture(number), order[case.labels[number]], values, geometry)
    image[:height, :width], labels[:height, :width] = picture, small
    return _Row(image, labels, pixels, number, (height, width))


class _PartialSet:
    """The slices of all cases with the same annotated structures, appended to two files."""

    def __init__(self, names: tuple[str, ...], stem: Path) -> None:
        self._names, self._stem = names, stem
        self._cases: list[tuple[str, str]] = []
        self._table: list[list[int]] = []
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> tuple[Path, Path]:
        return self._stem.with_suffix(".images"), self._stem.with_suffix(".labels")

    def append(self, case: AnnotatedCase, rows: Sequence[_Row]) -> None:
        """Append the slices of a case."""
        images, labels = self._paths()
        with images.open("ab") as image_file, labels.open("ab") as label_file:
            for row in rows:
                image_file.write(row.image.tobytes())
                label_file.write(row.labels.tobytes())
                self._table.append([len(self._cases), row.number, *row.content, *row.pixels])
        self._cases.append((case.name, case.patient))

    def slice_set(self, size: int) -> SliceSet:
        """All appended slices, as a data set of a store whose images are `size` pixels wide."""
        table = np.array(self._table, dtype=np.int64)
        images, labels = self._paths()
        return SliceSet(
            name=f"{self._stem.name} of {', '.join(self._names)}",
            modality="",
            anatomy="",
            classes=dict(enumerate(self._names, 1)),
            case_names=tuple(name for name, _ in self._cases),
            patients=tuple(patient for _, patient in self._cases),
            images=np.memmap(images, np.uint8, "r", shape=(len(table), size, size, 3)),
            labels=np.memmap(labels, np.uint8, "r", shape=(len(table), size, size)),
            case=table[:, 0],
            number=table[:, 1],
            content=table[:, 2:4],
            pixels=table[:, 4:],
        )


def trimmed(case: AnnotatedCase, numbers: Sequence[int]) -> AnnotatedCase:
    """The case with a copy of only the slices numbered `numbers`, so that the others can leave memory."""
    chosen = list(numbers)
    images = np.stack([case.images[number] for number in chosen])
    return AnnotatedCase(case.name, case.patient, images, case.labels[chosen].copy(), dict(case.structures))
