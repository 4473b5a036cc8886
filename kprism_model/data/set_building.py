# SPDX-License-Identifier: Apache-2.0
"""One data set of a slice store while it is built, in a folder beside its place.

The folder has the key of what is built, a record of the labels and a mark for each part that is finished, and the
arrays in their final size. It is moved to its place when it is whole. What was finished before a kill is taken over if
the key is still the same; else the data set is begun again.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.array_files import NoRoomError, SlicesFile
from kprism_model.data.case_slices import (
    COLUMNS,
    Selection,
    parts_of,
    read_table,
    store_labels,
    store_slices,
    without_cases,
)
from kprism_model.data.processes import Processes
from kprism_model.data.slices import IMAGES_NAME, INDEX_NAME, LABELS_NAME, TABLE_NAME
from kprism_model.files import write_bytes

T = TypeVar("T")
_KEY_NAME = "key"


class SetBuild:
    """The slices of `selection` on their way to the folder of that name in `out`; `key` tells what is stored."""

    def __init__(self, selection: Selection, key: str, out: Path) -> None:
        self._selection, self._key, self._place = selection, key, out / selection.name
        self._parts = parts_of(selection)
        self._folder = out / f".{selection.name}.building"
        with suppress(OSError):
            if (self._folder / _KEY_NAME).read_text(encoding="utf-8") == key:
                return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        write_bytes(self._folder / _KEY_NAME, key.encode())

    @cached_property
    def _table(self) -> list[NDArray[np.int64]]:
        """The rows of each part; all labels must be stored."""
        return [read_table(self._folder, part) for part in self._parts]

    @property
    def missing_bytes(self) -> int:
        """Bytes that the disk must still have room for; at most so many before the labels are stored."""
        if self._is_whole() or self._has_arrays():
            return 0
        known = all(part.record(self._folder).exists() for part in self._parts)
        count = sum(map(len, self._table)) if known else self._selection.most_slices
        return count * self._selection.slice_bytes

    def store_labels(self, processes: Processes, progress: bool) -> None:
        """Write the records of all parts that have none."""
        if self._is_whole():
            return
        missing = [part for part in self._parts if not part.record(self._folder).exists()]
        self._run(processes, store_labels, missing, f"labels of {self._selection.name}", progress)

    def store_slices(self, processes: Processes, progress: bool) -> None:
        """Write the slices of all parts that have no mark, and move the data set to its place."""
        if not self._is_whole():
            if not self._has_arrays():
                self._reserve()
            places = accumulate((len(rows) for rows in self._table[:-1]), initial=0)
            placed = zip(self._parts, places, strict=True)
            missing = [(part, first) for part, first in placed if not part.mark(self._folder).exists()]
            self._run(processes, store_slices, missing, f"slices of {self._selection.name}", progress)
            self._describe()
        self._move_into_place()

    def _run(
        self,
        processes: Processes,
        work: Callable[[Selection, Path, T], None],
        items: Sequence[T],
        description: str,
        progress: bool,
    ) -> None:
        """Do the work; what was finished is of no use after a ValueError, because the input must change."""
        try:
            processes.run(
                partial(work, without_cases(self._selection), self._folder), items, description, progress=progress
            )
        except ValueError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _is_whole(self) -> bool:
        """Whether the build was killed just before the folder was moved."""
        return (self._folder / INDEX_NAME).exists()

    def _has_arrays(self) -> bool:
        try:
            return len({SlicesFile(self._folder / name).shape[0] for name in (IMAGES_NAME, LABELS_NAME)}) == 1
        except (OSError, ValueError):
            return False

    def _reserve(self) -> None:
        """Make the arrays in their final size; ValueError for no slice, NoRoomError if the disk is too small."""
        selection, count = self._selection, sum(map(len, self._table))
        if not count:
            shutil.rmtree(self._folder, ignore_errors=True)
            shown = ", ".join(selection.structures.classes.values())
            raise ValueError(f"{selection.dataset.folder}: no slice of the split {selection.split} shows {shown}")
        for part in self._parts:
            part.mark(self._folder).unlink(missing_ok=True)
        shape = (count, selection.size, selection.size)
        try:
            SlicesFile.create(self._folder / IMAGES_NAME, (*shape, selection.channels))
            SlicesFile.create(self._folder / LABELS_NAME, shape)
        except OSError as error:
            (self._folder / IMAGES_NAME).unlink(missing_ok=True)
            raise _no_room(self._folder.parent, count * selection.slice_bytes, f" ({error})") from error

    def _describe(self) -> None:
        """Write the table and, last, the description of the data set."""
        selection, dataset = self._selection, self._selection.dataset
        table = io.BytesIO()
        np.save(table, np.concatenate(self._table))
        write_bytes(self._folder / TABLE_NAME, table.getvalue())
        classes = selection.structures.classes
        index = {
            "key": self._key,
            "name": dataset.name,
            "modality": dataset.modality,
            "anatomy": dataset.anatomy,
            "classes": classes,
            "cases": [case.name for case in selection.cases],
            "patients": [case.patient for case in selection.cases],
            "columns": [*COLUMNS, *map(str, classes)],
            "slices": sum(map(len, self._table)),
        }
        write_bytes(self._folder / INDEX_NAME, json.dumps(index).encode())

    def _move_into_place(self) -> None:
        """Replace the old data set. This takes more than one step: it is renamed first and deleted last."""
        for file in self._folder.iterdir():
            if file.name not in (IMAGES_NAME, LABELS_NAME, TABLE_NAME, INDEX_NAME, _KEY_NAME):
                file.unlink()
        old = self._folder.with_name(f".{self._selection.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self._place.exists():
            self._place.replace(old)
        self._folder.replace(self._place)
        shutil.rmtree(old, ignore_errors=True)
        (self._place / _KEY_NAME).unlink(missing_ok=True)


def check_room(folder: Path, needed: int) -> None:
    """NoRoomError if the disk of `folder` has no room for `needed` bytes."""
    if needed > shutil.disk_usage(folder).free:
        raise _no_room(folder, needed)


def _no_room(folder: Path, needed: int, reason: str = "") -> NoRoomError:
    free = shutil.disk_usage(folder).free
    return NoRoomError(
        f"the slices need {needed / 1e9:,.2f} GB in {folder}, where {free / 1e9:,.2f} GB are free{reason}: "
        "make room, choose a folder on a larger disk, or a smaller size of the slices"
    )
