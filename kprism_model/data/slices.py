# SPDX-License-Identifier: Apache-2.0
"""A store of slices on disk, resized once and memory-mapped: training reads a few kilobytes a slice, never a volume."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from kprism_model.data.datasets import Case, Dataset, load_case, read_dataset, slice_counts
from kprism_model.files import write_bytes
from kprism_model.network.config import SIZE_MULTIPLE
from kprism_model.preprocess import Geometry, resize

FORMAT_VERSION = 2
_INDEX = "index.json"  # in the folder of a data set: its slices
_STORE = "store.json"  # in the folder of the store: which data sets it holds


@dataclass(frozen=True)
class SliceSet:
    """The slices of one data set, each on a square canvas: top left, zeros below and right, as `Geometry.fit` does it.

    images: uint8 (n, size, size, 1 or 3). labels: uint8 (n, size, size), label indices. case: (n,) index into
    `case_names` and `patients`. number: (n,) slice number in its case. content: (n, 2) rows and columns that are image.
    pixels: (n, classes) pixels of each class, in the order of `classes`, counted in the original or on the canvas,
    whichever is fewer (so a canvas finer than the image does not make a speck look large).
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
        """All class names, each once, in the order of the data sets and of their label indices."""
        names: dict[str, str] = {}
        for part in self.sets:
            for name in part.classes.values():
                names.setdefault(name.casefold(), name)
        return tuple(names.values())

    def __len__(self) -> int:
        return sum(len(part) for part in self.sets)

    @classmethod
    def build(
        cls, datasets: Sequence[Path], out: Path, *, split: str = "training", size: int = 256, progress: bool = True
    ) -> SliceStore:
        """Build, or complete, the store in the folder `out` and open it.

        `datasets` are folders with a dataset.json; those without cases in `split` are left out. A data set is built
        anew only if its dataset.json, one of its files (size or time of change), the split or `size` differ from the
        stored ones. Raises ValueError for labels that are missing, no case at all, two data sets of one name, or a
        `size` that is no multiple of 32; what `read_dataset` and `load_case` raise passes through.
        """
        if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
            raise ValueError(f"the size of a slice store must be a multiple of {SIZE_MULTIPLE}, got {size}")
        found = [read_dataset(folder) for folder in datasets]
        filled = [dataset for dataset in found if dataset.cases(split)]
        names = [dataset.name for dataset in filled]
        if not filled or len(set(names)) < len(names):
            raise ValueError(f"need one or more data sets with {split} cases, each of its own name, got {names}")
        out.mkdir(parents=True, exist_ok=True)
        for dataset in filled:
            key = _content_key(dataset, split, size)
            if not _is_current(out / dataset.name, key):
                _build_set(dataset, out / dataset.name, split, size, key, progress)
        content = {"format_version": FORMAT_VERSION, "split": split, "size": size, "sets": names}
        write_bytes(out / _STORE, json.dumps(content).encode())
        return cls.open(out)

    @classmethod
    def open(cls, path: Path) -> SliceStore:
        """Open a store; arrays are memory-mapped read-only. ValueError if `path` holds none of this version."""
        try:
            content = json.loads((path / _STORE).read_text(encoding="utf-8"))
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}, expected {FORMAT_VERSION}")
            sets = tuple(_open_set(path / name) for name in content["sets"])
            return cls(path, content["split"], content["size"], sets)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a usable slice store; build it again: {error}") from error


def _content_key(dataset: Dataset, split: str, size: int) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION} {split} {size}\n".encode())
    digest.update((dataset.folder / "dataset.json").read_bytes())
    for case in dataset.cases(split):
        for file in (case.image, case.label):
            if file is not None:
                status = file.stat()
                digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_current(folder: Path, key: str) -> bool:
    try:
        return bool(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def _build_set(dataset: Dataset, folder: Path, split: str, size: int, key: str, progress: bool) -> None:
    """Write the slices of one data set beside `folder` and move them there."""
    cases = dataset.cases(split)
    unlabelled = [case.name for case in cases if case.label is None]
    if unlabelled:
        raise ValueError(f"{dataset.folder / 'dataset.json'}: {split} case {unlabelled[0]} has no label")
    counts, channels = zip(*(slice_counts(case) for case in cases), strict=True)
    shape = (sum(counts), size, size)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        images = _new_array(beside / "images.npy", (*shape, max(channels)))
        labels = _new_array(beside / "labels.npy", shape)
        rows: list[list[int]] = []
        for number, case in enumerate(tqdm(cases, desc=f"slices of {dataset.name}", disable=not progress)):
            rows += _add_case(dataset, case, number, images[len(rows) :], labels[len(rows) :])
        images.flush()
        labels.flush()
        index = {
            "key": key,
            "name": dataset.name,
            "modality": dataset.modality,
            "anatomy": dataset.anatomy,
            "classes": dataset.classes,
            "cases": [case.name for case in cases],
            "patients": [case.patient for case in cases],
            "columns": ["case", "slice", "content rows", "content columns", *map(str, dataset.classes)],
            "slices": rows,
        }
        write_bytes(beside / _INDEX, json.dumps(index).encode())
        _move_into_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A memory-mapped .npy file of zeros."""
    array: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, "w+", np.uint8, shape
    )
    return array


def _add_case(
    dataset: Dataset, case: Case, number: int, images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> list[list[int]]:
    """Put a case's slices at the start of `images` and `labels`; one index row for each slice."""
    loaded = load_case(dataset, case)
    assert loaded.labels is not None  # _build_set has checked it
    _, rows_before, columns_before = loaded.labels.shape
    geometry = Geometry.fit((rows_before, columns_before), images.shape[1])
    height, width = geometry.resized
    rows = []
    for position, (image, label) in enumerate(zip(loaded.images, loaded.labels, strict=True)):
        picture, small, pixels = to_canvas(image, label, list(dataset.classes), geometry)
        images[position, :height, :width] = picture[..., : images.shape[3]]
        labels[position, :height, :width] = small
        rows.append([number, position, height, width, *pixels])
    return rows


def to_canvas(
    image: NDArray[Any], label: NDArray[np.uint8], values: Sequence[int], geometry: Geometry
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
    """A slice in [0, 1] and its label as a store keeps them: uint8 (rows, columns, 3) and (rows, columns), resized.

    Third, the pixels of each of `values`, as `SliceSet.pixels` counts them.
    """
    height, width = geometry.resized
    canvas = geometry.image_to_model(image)[:, :height, :width]
    picture = (canvas * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    small = _resize_labels(label, geometry.resized)
    finer = max(1.0, geometry.scale[0] * geometry.scale[1])
    pixels = (small.reshape(-1, 1) == np.array(values)).sum(axis=0) / finer
    return picture, small, np.ceil(pixels).astype(int).tolist()


def _resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The index that covers most of each new pixel: smoother than nearest, and thin structures are not broken up."""
    values = np.unique(labels)
    if len(values) == 1:
        return np.full(size, values[0], np.uint8)
    one_hot = torch.from_numpy((labels[None] == values[:, None, None]).astype(np.float32))
    largest = resize(one_hot[None], size)[0].argmax(dim=0).numpy()
    chosen: NDArray[np.uint8] = values[largest]
    return chosen


def _move_into_place(beside: Path, folder: Path) -> None:
    """A folder cannot replace a filled one in one step: the old one is first renamed, and deleted last."""
    old = beside.with_name(f"{beside.name}.old")
    if folder.exists():
        folder.replace(old)
    beside.chmod(0o755)
    beside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _open_set(folder: Path) -> SliceSet:
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    table = np.array(index["slices"], dtype=np.int64)
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy", mmap_mode="r")
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
