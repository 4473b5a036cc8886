# SPDX-License-Identifier: Apache-2.0
"""Building a slice store from image files; a data set is built again only if it has changed.

A build that was killed goes on where it stopped (see `set_building`); labels are read before images (see
`case_slices`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kprism_model.data.case_slices import Selection
from kprism_model.data.datasets import Dataset, read_dataset
from kprism_model.data.processes import Processes
from kprism_model.data.set_building import SetBuild, check_room
from kprism_model.data.slices import FORMAT_VERSION, INDEX_NAME, STORE_NAME, SliceStore
from kprism_model.data.structures import StructureMap
from kprism_model.files import write_bytes
from kprism_model.network.config import SIZE_MULTIPLE

StructureChoice = Callable[[Dataset], StructureMap] | Mapping[str, StructureMap] | None
"""The structures of each data set, by a function or by its name; a set that is not named keeps its classes."""


def build_store(
    datasets: Sequence[Path],
    out: Path,
    *,
    split: str = "training",
    size: int = 256,
    structures: StructureChoice = None,
    only_shown: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> SliceStore:
    """Build or complete the store in the folder `out`, and open it.

    `datasets` are folders with a dataset.json; those without cases in `split` are left out. Labels are mapped to
    `structures` before they are resized; with `only_shown`, slices that show none of them are left out. A data set is
    built again only if its dataset.json, one of its files (size or modification time) or one of these options has
    changed. `workers` processes share the cases; the result does not depend on their number. Another process that
    builds in `out` is waited for.

    ValueError for missing labels, no cases, no slice that shows a structure, two data sets with one name, or a `size`
    that is not a multiple of 32; errors of `read_dataset`, `open_images` and `open_labels` pass through. NoRoomError,
    an OSError, if the disk is too small.
    """
    selections = select(datasets, split=split, size=size, structures=structures, only_shown=only_shown)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out), Processes(workers) as processes:
        builds = [SetBuild(one, content_key(one), out) for one in selections if stored_slices(one, out) is None]
        if not only_shown:
            check_room(out, sum(build.missing_bytes for build in builds))
        for build in builds:  # the labels of all first: a fault in one is found in minutes
            build.store_labels(processes, progress)
        check_room(out, sum(build.missing_bytes for build in builds))
        for build in builds:
            build.store_slices(processes, progress)
        content = {
            "format_version": FORMAT_VERSION,
            "split": split,
            "size": size,
            "sets": [one.name for one in selections],
        }
        write_bytes(out / STORE_NAME, json.dumps(content).encode())
        return SliceStore.open(out)


def select(
    datasets: Sequence[Path],
    *,
    split: str = "training",
    size: int = 256,
    structures: StructureChoice = None,
    only_shown: bool = False,
) -> list[Selection]:
    """What `build_store` stores of each data set; the arguments and errors are its own."""
    chosen = []
    for dataset in labelled_datasets(datasets, split, size):
        found = structures(dataset) if callable(structures) else (structures or {}).get(dataset.name)
        chosen.append(Selection(dataset, split, size, found or StructureMap.unchanged(dataset.classes), only_shown))
    return chosen


def stored_slices(selection: Selection, out: Path) -> int | None:
    """The number of slices of a data set in the store `out`; None if they must be built, or built again."""
    try:
        index = json.loads((out / selection.name / INDEX_NAME).read_text(encoding="utf-8"))
        return int(index["slices"]) if index["key"] == content_key(selection) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def content_key(selection: Selection) -> str:
    """A digest of all that decides what is stored: files by size and modification time, structures, options."""
    structures = selection.structures
    options = [FORMAT_VERSION, selection.split, selection.size, selection.only_shown, list(structures.classes.items())]
    digest = hashlib.sha256(f"{json.dumps(options)}\n".encode())
    digest.update(structures.table.tobytes())
    digest.update((selection.dataset.folder / "dataset.json").read_bytes())
    for case in selection.cases:
        for file in (case.image, case.label):
            if file is not None:
                status = file.stat()
                digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process builds in `folder`; file systems without locks are not waited for."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
