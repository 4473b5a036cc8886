# SPDX-License-Identifier: Apache-2.0
"""The slices of a few cases on their way into a store: first their labels, then their images.

Labels come first, for all cases: they are small, a fault in them is found before the long work, and how many slices
show a structure is known before a byte of an image is read. So the store's files get their final size at once, each
slice has its place, and processes can write side by side. Meanwhile the labels wait in a compressed file for each part.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.array_files import NoRoomError, SlicesFile
from kprism_model.data.datasets import Case, CaseImages, Dataset, open_images, open_labels, slice_counts
from kprism_model.data.slices import IMAGES_NAME, LABELS_NAME, count_pixels, resize_labels, resize_picture
from kprism_model.data.structures import StructureMap
from kprism_model.files import write_bytes
from kprism_model.preprocess import Geometry

COLUMNS = ("case", "slice", "content rows", "content columns")
"""Columns of the table of slices before the pixels of each class."""

_PART_SLICES = 64  # small cases are worked on together up to about so many slices: a part has its own files
_BLOCK = 8  # slices that are read at once: neighbours share cache lines if slices are not the slowest axis


@dataclass(frozen=True)
class Selection:
    """What a store takes of a data set: the cases of one split, some structures, at one size.

    With `only_shown`, slices that show none of the structures at that size are left out.
    """

    dataset: Dataset
    split: str
    size: int
    structures: StructureMap
    only_shown: bool = False

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.dataset.name

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases of the split."""
        return self.dataset.cases(self.split)

    @cached_property
    def headers(self) -> tuple[tuple[int, int], ...]:
        """The number of slices and of channels of each case, from the headers of its image."""
        return tuple(slice_counts(case) for case in self.cases)

    @property
    def most_slices(self) -> int:
        """The number of slices, those that may be left out among them."""
        return sum(count for count, _ in self.headers)

    @property
    def channels(self) -> int:
        """Channels of the stored images: 3 if one of them is in colour."""
        return max(channels for _, channels in self.headers)

    @property
    def slice_bytes(self) -> int:
        """Bytes of a slice in the store: image and labels."""
        return self.size * self.size * (self.channels + 1)


@dataclass(frozen=True)
class Part:
    """Some consecutive cases that are worked on together: a volume, or some pictures. `first` is the first's number."""

    number: int
    first: int
    cases: tuple[Case, ...]

    def record(self, folder: Path) -> Path:
        """The file with the labels of the part."""
        return folder / f"part-{self.number:06d}.npz"

    def mark(self, folder: Path) -> Path:
        """A file that is there when the slices of the part are."""
        return folder / f"part-{self.number:06d}.done"


def parts_of(selection: Selection) -> list[Part]:
    """The cases of a selection in parts."""
    parts: list[Part] = []
    first = slices = 0
    for number, (count, _) in enumerate(selection.headers, start=1):
        slices += count
        if slices >= _PART_SLICES or number == len(selection.cases):
            parts.append(Part(len(parts), first, selection.cases[first:number]))
            first, slices = number, 0
    return parts


def without_cases(selection: Selection) -> Selection:
    """The same without the list of its cases, to be sent to other processes with a part."""
    return replace(selection, dataset=replace(selection.dataset, splits={}))


def store_labels(selection: Selection, folder: Path, part: Part) -> None:
    """Write the record of a part: a row for each of its slices, and their labels."""
    table: list[list[int]] = []
    files: list[bytes] = []
    for number, case in enumerate(part.cases, start=part.first):
        for row, small in _case_labels(selection, folder, number, case):
            table.append(row)
            files.append(zlib.compress(small.tobytes(), 1))
    record = io.BytesIO()
    np.savez(
        record,
        table=np.array(table, np.int64).reshape(-1, len(COLUMNS) + len(selection.structures.classes)),
        lengths=np.array([len(file) for file in files], np.int64),
        labels=np.frombuffer(b"".join(files), np.uint8),
    )
    write_bytes(part.record(folder), record.getvalue())


def read_table(folder: Path, part: Part) -> NDArray[np.int64]:
    """The rows of a part's slices, from its record."""
    with np.load(part.record(folder)) as record:
        table: NDArray[np.int64] = record["table"]
    return table


def store_slices(selection: Selection, folder: Path, placed: tuple[Part, int]) -> None:
    """Write the slices of a part whose record is there; `placed` is the part and the row of its first slice.

    NoRoomError if the disk is full.
    """
    part, first = placed
    images, labels = SlicesFile(folder / IMAGES_NAME), SlicesFile(folder / LABELS_NAME)
    table = read_table(folder, part)
    try:
        for row, small in zip(table, _stored_labels(folder, part), strict=True):
            canvas = np.zeros(labels.shape[1:], np.uint8)
            canvas[: row[2], : row[3]] = small.reshape(row[2], row[3])
            labels.write(first, canvas)
            first += 1
        first -= len(table)
        for number, case in enumerate(part.cases, start=part.first):
            positions = table[table[:, 0] == number, 1]
            if len(positions):
                opened = open_images(selection.dataset, case, folder)
                _write_images(opened, positions, images, first)
            first += len(positions)
        labels.flush()
        images.flush()
        write_bytes(part.mark(folder), b"")
    except OSError as error:
        raise NoRoomError(f"the slices of {selection.name} cannot be written to {folder}: {error}") from error


def _case_labels(
    selection: Selection, folder: Path, number: int, case: Case
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """The row and the labels of each slice of a case that is stored."""
    values = list(selection.structures.classes)
    labels = open_labels(selection.dataset, case, folder)
    geometry = _geometry(labels.stored.shape, selection.size)
    for start in range(0, len(labels), _BLOCK):
        block = selection.structures.apply(labels.checked(slice(start, start + _BLOCK)))
        for position, label in enumerate(block, start):
            small = resize_labels(label, geometry.resized)
            if small.any() or not selection.only_shown:
                yield [number, position, *geometry.resized, *count_pixels(small, values, geometry)], small


def _stored_labels(folder: Path, part: Part) -> Iterator[NDArray[np.uint8]]:
    with np.load(part.record(folder)) as record:
        lengths, joined = record["lengths"], record["labels"]
    ends = np.cumsum([0, *lengths]).tolist()
    return (np.frombuffer(zlib.decompress(joined[start:end]), np.uint8) for start, end in pairwise(ends))


def _write_images(opened: CaseImages, positions: NDArray[np.int64], images: SlicesFile, first: int) -> None:
    """Write the slices of a case at `positions`, in ascending order, to the rows from `first` on."""
    _, size, _, channels = images.shape
    geometry = _geometry(opened.stored.shape, size)
    height, width = geometry.resized
    for start in range(0, len(opened), _BLOCK):
        chosen = positions[(positions >= start) & (positions < start + _BLOCK)]
        if not len(chosen):
            continue
        scaled = opened.scaled(slice(chosen[0], chosen[-1] + 1))
        canvas = np.zeros((len(chosen), size, size, channels), np.uint8)
        for place, image in enumerate(scaled[chosen - chosen[0]]):
            canvas[place, :height, :width] = resize_picture(image, geometry)[..., :channels]
        images.write(first, canvas)
        first += len(chosen)


def _geometry(shape: tuple[int, ...], size: int) -> Geometry:
    return Geometry.fit((shape[1], shape[2]), size)
