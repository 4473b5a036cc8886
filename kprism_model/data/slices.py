# SPDX-License-Identifier: Apache-2.0
"""A store of slices on disk, resized once and memory-mapped: training reads a few kilobytes a slice, no volumes.

What is read stays in the page cache of the kernel, which gives it up when memory is needed: a store may be much larger
than memory, and processes share what they read. Tools that count mapped pages as memory of a process (RSS, RES in
`top`) show it growing up to the size of the store; its own memory (`RssAnon` in /proc/PID/status) does not grow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kprism_model.preprocess import Geometry, resize

FORMAT_VERSION = 3
INDEX_NAME = "index.json"
"""File in the folder of a data set that describes it."""
TABLE_NAME = "slices.npy"
"""File in the folder of a data set with a row for each slice: int64 case, slice, content rows and columns, pixels."""
IMAGES_NAME, LABELS_NAME = "images.npy", "labels.npy"
"""Files in the folder of a data set: its slices, and their labels."""
STORE_NAME = "store.json"
"""File in the folder of the store that lists its data sets."""


@dataclass(frozen=True)
class SliceSet:
    """The slices of one data set, each on a square canvas: top left, with zeros below and right (see `Geometry.fit`).

    images: uint8 (n, size, size, 1 or 3). labels: uint8 (n, size, size), label indices. case: (n,) index into
    `case_names` and `patients`. number: (n,) slice number in its case. content: (n, 2) rows and columns without
    padding. pixels: (n, classes) pixels of each class, in the order of `classes`, in the original or on the canvas,
    whichever is fewer, so that a fine canvas does not make a speck look large. weight: sampling weight of the data set
    among others. licence: of images and labels.
    """

    name: str
    modality: str
    anatomy: str
    classes: dict[int, str]
    case_names: tuple[str, ...]
    patients: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    case: NDArray[np.int64]
    number: NDArray[np.int64]
    content: NDArray[np.int64]
    pixels: NDArray[np.int64]
    weight: float = 1.0
    licence: str = "not stated"

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def patient(self) -> NDArray[np.int64]:
        """(n,) a number for each slice's patient."""
        numbers = {patient: number for number, patient in enumerate(dict.fromkeys(self.patients))}
        return np.array([numbers[patient] for patient in self.patients], dtype=np.int64)[self.case]


@dataclass(frozen=True)
class SliceStore:
    """The slices of one split of several data sets, at one size."""

    path: Path
    split: str
    size: int
    sets: tuple[SliceSet, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """All class names without repetition, in the order of the data sets and of their label indices."""
        names: dict[str, str] = {}
        for slice_set in self.sets:
            for name in slice_set.classes.values():
                names.setdefault(name.casefold(), name)
        return tuple(names.values())

    def __len__(self) -> int:
        return sum(len(slice_set) for slice_set in self.sets)

    @classmethod
    def open(cls, path: Path) -> SliceStore:
        """Open a store; arrays are memory-mapped read-only. ValueError if `path` has no store of this version."""
        try:
            content = json.loads((path / STORE_NAME).read_text(encoding="utf-8"))
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}, expected {FORMAT_VERSION}")
            sets = tuple(_open_set(path / name) for name in content["sets"])
            return cls(path, content["split"], content["size"], sets)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a usable slice store; build it again: {error}") from error


def to_canvas(
    image: NDArray[Any], label: NDArray[np.uint8], values: Sequence[int], geometry: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """A slice in [0, 1] and its label in the format of a store: uint8 (rows, columns, 3) and (rows, columns), resized.

    The third result is the number of pixels of each of `values`, counted as in `SliceSet.pixels`.
    """
    picture = resize_picture(image, geometry)
    small = resize_labels(label, geometry.resized)
    return picture, small, count_pixels(small, values, geometry)


def count_pixels(small: NDArray[np.uint8], values: Sequence[int], geometry: Geometry) -> list[int]:
    """The pixels of each of `values` in resized labels, counted as in `SliceSet.pixels`."""
    finer = max(1.0, geometry.scale[0] * geometry.scale[1])
    pixels = np.bincount(small.reshape(-1), minlength=256)[list(values)] / finer
    counted: list[int] = np.ceil(pixels).astype(int).tolist()
    return counted


def resize_picture(image: NDArray[Any], geometry: Geometry) -> NDArray[np.uint8]:
    """A slice in [0, 1], grey or colour, in the format of a store: uint8 (rows, columns, 3), resized."""
    height, width = geometry.resized
    canvas = geometry.image_to_model(image)[: 1 if len(image.shape) == 2 else 3, :height, :width]
    picture: NDArray[np.uint8] = (canvas * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    return np.repeat(picture, 3, axis=2) if len(image.shape) == 2 else picture


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The index that covers most of each new pixel: smoother than nearest, and thin structures stay connected."""
    values = np.flatnonzero(np.bincount(labels.reshape(-1))).astype(np.uint8)
    if len(values) == 1:
        return np.full(size, values[0], np.uint8)
    one_hot = torch.from_numpy((labels[None] == values[:, None, None]).astype(np.float32))
    shares = resize(one_hot[None], size)[0].numpy()
    chosen, most = np.full(size, values[0], np.uint8), shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):  # ten times as fast as argmax over the first axis
        chosen[share > most] = value
        most = np.maximum(most, share)
    return chosen


def _open_set(folder: Path) -> SliceSet:
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    table = np.asarray(np.load(folder / TABLE_NAME, mmap_mode="c"))  # torch wants arrays that can be written to
    images = np.load(folder / IMAGES_NAME, mmap_mode="r")
    labels = np.load(folder / LABELS_NAME, mmap_mode="r")
    if not len(table) == len(images) == len(labels):
        raise ValueError(f"{folder} holds {len(images)} images, {len(labels)} labels and {len(table)} index rows")
    return SliceSet(
        name=index["name"],
        modality=index["modality"],
        anatomy=index["anatomy"],
        classes={int(value): name for value, name in index["classes"].items()},
        case_names=tuple(index["cases"]),
        patients=tuple(index["patients"]),
        images=images,
        labels=labels,
        case=table[:, 0],
        number=table[:, 1],
        content=table[:, 2:4],
        pixels=table[:, 4:],
    )
