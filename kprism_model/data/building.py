# SPDX-License-Identifier: Apache-2.0
"""Building a slice store from image files; a data set is built again only if it has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.datasets import Case, Dataset, load_case, read_dataset, slice_counts
from kprism_model.data.slices import FORMAT_VERSION, INDEX_NAME, STORE_NAME, SliceStore, to_canvas
from kprism_model.files import write_bytes
from kprism_model.network.config import SIZE_MULTIPLE
from kprism_model.preprocess import Geometry
from kprism_model.progress import progress_bar


def build_store(
    datasets: Sequence[Path], out: Path, *, split: str = "training", size: int = 256, progress: bool = True
) -> SliceStore:
    """Build or complete the store in the folder `out`, and open it.

    `datasets` are folders with a dataset.json; those without cases in `split` are left out. A data set is built again
    only if its dataset.json, one of its files (size or modification time), the split or `size` has changed. ValueError
    for missing labels, no cases, two data sets with one name, or a `size` that is not a multiple of 32; errors of
    `read_dataset` and `load_case` pass through.
    """
    labelled = labelled_datasets(datasets, split, size)
    out.mkdir(parents=True, exist_ok=True)
    for dataset in labelled:
        key = _content_key(dataset, split, size)
        if not _is_current(out / dataset.name, key):
            _build_set(dataset, out / dataset.name, split, size, key, progress)
    content = {
        "format_version": FORMAT_VERSION,
        "split": split,
        "size": size,
        "sets": [dataset.name for dataset in labelled],
    }
    write_bytes(out / STORE_NAME, json.dumps(content).encode())
    return SliceStore.open(out)


def labelled_datasets(folders: Sequence[Path], split: str, size: int) -> list[Dataset]:
    """The data sets with cases in `split`, for slices of `size` pixels.

    ValueError for a `size` that is not a multiple of 32, no cases, two data sets with one name, or a case without a
    label; errors of `read_dataset` pass through.
    """
    if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
        raise ValueError(f"the size of a slice store must be a multiple of {SIZE_MULTIPLE}, got {size}")
    filled = [dataset for dataset in map(read_dataset, folders) if dataset.cases(split)]
    names = [dataset.name for dataset in filled]
    if not filled or len(set(names)) < len(names):
        raise ValueError(f"expected one or more data sets with {split} cases and different names, got {names}")
    for dataset in filled:
        for case in dataset.cases(split):
            if case.label is None:
                raise ValueError(f"{dataset.folder / 'dataset.json'}: {split} case {case.name} has no label")
    return filled


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
        return bool(json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def _build_set(dataset: Dataset, folder: Path, split: str, size: int, key: str, progress: bool) -> None:
    """Write the slices of one data set to a temporary folder, and move it to `folder`."""
    cases = dataset.cases(split)
    counts, channels = zip(*(slice_counts(case) for case in cases), strict=True)
    shape = (sum(counts), size, size)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        images = _new_array(temporary / "images.npy", (*shape, max(channels)))
        labels = _new_array(temporary / "labels.npy", shape)
        rows: list[list[int]] = []
        for number, case in enumerate(progress_bar(cases, f"slices of {dataset.name}", shown=progress)):
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
        write_bytes(temporary / INDEX_NAME, json.dumps(index).encode())
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A memory-mapped .npy file of zeros."""
    array: np.memmap[Any, np.dtype[np.uint8]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, "w+", np.uint8, shape
    )
    return array


def _add_case(
    dataset: Dataset, case: Case, number: int, images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> list[list[int]]:
    """Write a case's slices to the start of `images` and `labels`; returns an index row for each slice."""
    loaded = load_case(dataset, case)
    assert loaded.labels is not None  # labelled_datasets has checked it
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


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Replace `folder`. This takes more than one step: the old folder is renamed first and deleted last."""
    old = temporary.with_name(f"{temporary.name}.old")
    if folder.exists():
        folder.replace(old)
    temporary.chmod(0o755)
    temporary.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
