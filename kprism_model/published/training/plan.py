# SPDX-License-Identifier: Apache-2.0
"""What a training will take, before it starts: steps, hours, memory, disk. It refuses what cannot fit.

A plan is made twice: from the headers of the files and a few label maps, before slices are stored; and when they are,
with their exact number and a few measured steps.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kprism_model.data.building import stored_slices
from kprism_model.data.case_slices import COLUMNS, Selection
from kprism_model.data.datasets import open_labels
from kprism_model.preprocess import evenly_spaced

Measure = Callable[[int], tuple[float, int | None]]
"""Makes so many steps of the training; gives the seconds of a step and the most bytes of memory it took, if known."""

MEASURED_STEPS = 2
PARAMETER_BYTES = 16
"""Bytes of a weight in float32 with its gradient and the two moments of AdamW."""

_READ_VOLUMES, _READ_PICTURES = 4, 32  # label maps that an estimate is made from


@dataclass(frozen=True)
class SetPlan:
    """A data set in the training.

    slices: that are drawn from; they are `stored` already, or their number may be `estimated` from a few label maps.
    weight: of each slice. share: of the images of a batch. store_bytes: of its slices on disk.
    """

    name: str
    cases: int
    slices: int
    stored: bool
    estimated: bool
    weight: float
    share: float
    store_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a training takes and what there is; bytes and seconds that are not known are None.

    size: side of the images in pixels. batch: images in a step of all `processes` together. other_bytes: what the run
    writes beside its slices. free_bytes: on the disk of `folder`. seconds: of a step; peak_bytes: of memory in it, of
    one process, whose device has device_bytes. out_of_memory: the measured step did not fit.
    """

    folder: str
    size: int
    batch: int
    epochs: int
    processes: int
    sets: tuple[SetPlan, ...]
    other_bytes: int
    free_bytes: int
    parameters: int | None = None
    device_bytes: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    out_of_memory: bool = False

    @property
    def slices(self) -> int:
        """Slices of all sets."""
        return sum(one.slices for one in self.sets)

    @property
    def steps(self) -> int:
        """Steps of the training: an epoch draws as many images as there are slices."""
        return self.epochs * math.ceil(self.slices / self.batch)

    @property
    def store_bytes(self) -> int:
        """Bytes of all slices on disk."""
        return sum(one.store_bytes for one in self.sets)

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be written."""
        return self.other_bytes + sum(one.store_bytes for one in self.sets if not one.stored)

    def hours(self, processes: int) -> float | None:
        """Hours of the training, if processes other than the measured ones share its work without a loss."""
        if self.seconds is None:
            return None
        return self.steps * self.seconds * self.processes / processes / 3600

    def problems(self) -> list[str]:
        """What does not fit: a sentence for each, with what to change."""
        found = []
        lacking = self.missing_bytes - self.free_bytes
        if lacking > 0:
            found.append(
                f"the disk of {self.folder} lacks {_gb(lacking)}: {_gb(self.missing_bytes)} are still to be written, "
                f"{_gb(self.free_bytes)} are free. Choose another --run-folder or a smaller --size"
            )
        advice = "Choose fewer --images-at-once, --checkpoint-activations or a smaller --size"
        if self.out_of_memory:
            has = "" if self.device_bytes is None else f" of {_gb(self.device_bytes)}"
            found.append(f"a step does not fit into the memory{has} of the device. {advice}")
        elif self.peak_bytes is not None and self.device_bytes is not None and self.peak_bytes > self.device_bytes:
            found.append(
                f"a step takes {_gb(self.peak_bytes)} of memory, {_gb(self.peak_bytes - self.device_bytes)} more than "
                f"the {_gb(self.device_bytes)} of the device. {advice}"
            )
        return found

    def refuse(self) -> None:
        """ValueError that says what does not fit, by how much, and what to change."""
        problems = self.problems()
        if problems:
            raise ValueError("this training cannot run here: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON, with what follows from it."""
        hours = {str(count): self.hours(count) for count in _counts(self.processes)}
        derived = {
            "slices": self.slices,
            "steps": self.steps,
            "store_bytes": self.store_bytes,
            "missing_bytes": self.missing_bytes,
            "hours": hours,
            "problems": self.problems(),
        }
        return asdict(self) | derived

    def __str__(self) -> str:
        header = ("data set", "cases", "slices", "weight", "of a batch", "disk")
        cases = sum(one.cases for one in self.sets)
        total = ("in all", f"{cases:,}", f"{self.slices:,}", "", "100.0 %", _gb(self.store_bytes))
        rows = [header, *map(_row, self.sets), total]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))).rstrip() for row in rows]
        if any(one.estimated for one in self.sets):
            lines.append("~: estimated from the label maps of a few cases; exact when the slices are stored")
        return "\n".join([*lines, "", *self._lines()])

    def _lines(self) -> list[str]:
        steps = self.steps // self.epochs
        lines = [
            f"steps   {self.steps:,}: {self.epochs} epochs of {steps:,} steps of {self.batch} images of "
            f"{self.size} x {self.size} pixels",
            f"disk    {_gb(self.store_bytes)} for slices, {_gb(self.other_bytes)} for the rest; "
            f"{_gb(self.missing_bytes)} are still to be written, {_gb(self.free_bytes)} are free in {self.folder}",
            f"memory  {self._memory()}",
        ]
        if self.seconds is None:
            return [*lines, "time    not measured yet"]
        hours = [f"{self.hours(count):,.1f} hours with {_processes(count)}" for count in _counts(self.processes)]
        measured = f"{self.seconds:.3f} s a step, measured with {_processes(self.processes)}"
        return [*lines, f"time    {measured}: {', '.join(hours)}"]

    def _memory(self) -> str:
        of_device = "" if self.device_bytes is None else f" of the {_gb(self.device_bytes)} of a device"
        if self.out_of_memory:
            return f"more than there is{of_device}"
        fixed = None if self.parameters is None else self.parameters * PARAMETER_BYTES
        network = "" if fixed is None else f"{_gb(fixed)} for weights, gradients and optimizer"
        if self.peak_bytes is None:
            return f"{network}; the rest is not measured yet" if network else "not measured yet"
        rest = "" if fixed is None else f": {network}, {_gb(max(0, self.peak_bytes - fixed))} for the rest of a step"
        return f"{_gb(self.peak_bytes)}{of_device}{rest}"


def make_plan(
    selections: Sequence[Selection],
    store: Path,
    *,
    batch: int,
    epochs: int,
    weights: Mapping[str, float],
    processes: int = 1,
    other_bytes: int = 0,
    parameters: int | None = None,
    device_bytes: int | None = None,
    measure: Measure | None = None,
    free_bytes: int | None = None,
) -> Plan:
    """The plan of a training on `selections`, whose slices are or will be in the folder `store`.

    `weights` are of a slice of each set, 1 for those that are not named. `parameters` of the network, and what a device
    of it has, tell how its memory is used. `measure` is called once; that it runs out of memory is part of the plan.
    `free_bytes` of the disk of `store` are asked of the system if they are not given. ValueError for no positive
    weight; errors of `open_labels` pass through.
    """
    counts = [_slices(one, store) for one in selections]
    shares = [weights.get(one.name, 1.0) * slices for one, (slices, _, _) in zip(selections, counts, strict=True)]
    if not sum(shares) > 0:
        raise ValueError(f"no slice can be drawn: weights {dict(weights)}, slices {[count[0] for count in counts]}")
    sets = tuple(
        SetPlan(
            name=one.name,
            cases=len(one.cases),
            slices=slices,
            stored=stored,
            estimated=estimated,
            weight=weights.get(one.name, 1.0),
            share=share / sum(shares),
            store_bytes=slices * (one.slice_bytes + 8 * (len(COLUMNS) + len(one.structures.classes))),
        )
        for one, share, (slices, stored, estimated) in zip(selections, shares, counts, strict=True)
    )
    seconds, peak, out_of_memory = _measured(measure)
    return Plan(
        folder=str(store),
        size=max(one.size for one in selections),
        batch=batch,
        epochs=epochs,
        processes=processes,
        sets=sets,
        other_bytes=other_bytes,
        free_bytes=_free_bytes(store) if free_bytes is None else free_bytes,
        parameters=parameters,
        device_bytes=device_bytes,
        seconds=seconds,
        peak_bytes=peak,
        out_of_memory=out_of_memory,
    )


def _slices(selection: Selection, store: Path) -> tuple[int, bool, bool]:
    """The number of slices that are drawn from, whether they are stored, and whether the number is an estimate."""
    count = stored_slices(selection, store)
    if count is not None:
        return count, True, False
    if not selection.only_shown:
        return selection.most_slices, False, False
    return round(_shown_share(selection) * selection.most_slices), False, True


def _shown_share(selection: Selection) -> float:
    """The share of the slices of a few cases that show a structure."""
    cases = selection.cases
    chosen = evenly_spaced(range(len(cases)), _READ_VOLUMES if cases[0].is_volume else _READ_PICTURES)
    shown = slices = 0
    for number in chosen:
        labels = open_labels(selection.dataset, cases[number])
        for position in range(len(labels)):
            shown += bool(selection.structures.apply(labels.checked(slice(position, position + 1))).any())
        slices += len(labels)
    return shown / slices


def _measured(measure: Measure | None) -> tuple[float | None, int | None, bool]:
    if measure is None:
        return None, None, False
    try:
        return *measure(MEASURED_STEPS), False
    except (torch.OutOfMemoryError, MemoryError):
        return None, None, True


def _free_bytes(folder: Path) -> int:
    """Free bytes of the disk where a folder is or will be."""
    existing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(existing).free


def _row(one: SetPlan) -> tuple[str, ...]:
    slices = f"{'~' if one.estimated else ''}{one.slices:,}"
    return one.name, f"{one.cases:,}", slices, f"{one.weight:g}", f"{100 * one.share:.1f} %", _gb(one.store_bytes)


def _counts(processes: int) -> list[int]:
    """Numbers of processes that hours are told for."""
    return sorted({1, 8, processes})


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _gb(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
