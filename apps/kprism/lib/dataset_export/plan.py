# SPDX-License-Identifier: Apache-2.0
"""What an export writes: which cases make which data set, the numbers of structures, folds of patients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.classes import name_key
from lib.dataset_export.files import is_rectangular
from lib.dataset_export.folds import folds_of, groups, splits
from lib.dataset_export.kinds import Kind
from lib.dataset_export.origin import Origin
from lib.errors import RequestError

NNUNET, MSD = "nnunet", "msd"
FIRST_ID = {NNUNET: 501, MSD: 51}
LAST_ID = {NNUNET: 999, MSD: 99}

MAX_CLASSES = 255

IGNORE = "ignore"
"""nnU-Net leaves voxels of a class with this name out of training."""


@dataclass(frozen=True)
class Options:
    """What is asked for. `structures`: only these, all if empty; `complete`: only cases that annotate all of them."""

    form: str
    name: str
    first_id: int
    seed: int = 0
    folds: int = 5
    structures: tuple[str, ...] = ()
    complete: bool = False
    keep_identifiers: bool = False

    @classmethod
    def checked(cls, form: str, name: str, first_id: int | None, seed: int, folds: int, **more: Any) -> Options:
        """The options; ValueError names one that cannot be used."""
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", name):
            raise ValueError(f"--name {name!r}: expected letters, digits and hyphens, as in Liver-2026")
        first = FIRST_ID[form] if first_id is None else first_id
        if not 1 <= first <= LAST_ID[form]:
            raise ValueError(f"--id {first}: expected a number from 1 to {LAST_ID[form]} for --format {form}")
        if folds < 2:
            raise ValueError(f"--folds {folds}: expected 2 or more")
        if seed < 0:
            raise ValueError(f"--seed {seed}: expected 0 or more")
        return cls(form, name, first, seed, folds, **more)


@dataclass(frozen=True)
class StagedCase:
    """A case whose voxels are written to the staging folder: `images` (one a channel) and `label`.

    `structures`: name -> value in the staged label. `affine` and `slice_axis` are those of the image. Digests are of
    the voxels as written, those of `images` one a channel.
    """

    image_id: str
    kind: Kind
    images: tuple[Path, ...] = field(repr=False)
    label: Path = field(repr=False)
    structures: Mapping[str, int]
    patient: str
    affine: NDArray[np.float64] = field(repr=False)
    slice_axis: int
    digests: tuple[str, ...]
    origin: Origin
    volume: int | None = None
    label_digest: str = ""


@dataclass(frozen=True)
class Plan:
    """One data set: its folder's name, its kind, its cases in order, and the structures by value, from 1."""

    folder: str
    name: str
    number: int
    kind: Kind
    cases: tuple[StagedCase, ...]
    classes: tuple[str, ...]
    options: Options

    @cached_property
    def names(self) -> list[str]:
        """The names of the cases: counted, so that they tell nothing about patients."""
        digits = max(4, len(str(len(self.cases))))
        return [f"case_{number:0{digits}}" for number in range(1, len(self.cases) + 1)]

    @cached_property
    def owners(self) -> list[int]:
        """A number from 1 for the patient of each case; cases of one image count as one patient's."""
        return groups([(f"patient {case.patient}", f"image {case.digests}") for case in self.cases])

    @cached_property
    def folds(self) -> list[int]:
        """The fold of each case, 0 for all if there is one patient."""
        return folds_of(self.owners, self.options.folds, self.options.seed)

    @cached_property
    def splits(self) -> list[dict[str, list[str]]]:
        """nnU-Net's splits; none if there is one patient."""
        return splits(self.names, self.folds)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Structure -> the number of cases that annotate it."""
        counts = Counter(name for case in self.cases for name in case.structures)
        return {name: counts[name] for name in self.classes}

    @property
    def partial(self) -> int:
        """The number of cases that do not annotate all structures."""
        return sum(not set(self.classes) <= set(case.structures) for case in self.cases)

    @property
    def codes(self) -> dict[str, int]:
        """Structure -> its value in the labels, in the order of the values."""
        return {name: value for value, name in enumerate(self.classes, 1)}

    @property
    def is_rectangular(self) -> bool:
        """Whether the voxels of all cases have axes at right angles."""
        return all(is_rectangular(case.affine) for case in self.cases)


def make_plans(cases: Sequence[StagedCase], options: Options) -> tuple[list[Plan], list[str]]:
    """The data sets, and sentences about kinds of images that give none. RequestError if there is nothing to write."""
    if not cases:
        raise RequestError("there is no image with a submitted label that can be exported; nothing was written")
    wanted = _wanted(cases, options)
    kinds = sorted({case.kind for case in cases})
    chosen = {kind: _chosen([case for case in cases if case.kind == kind], wanted, options) for kind in kinds}
    notes = [
        f"{kind}: none of the {sum(case.kind == kind for case in cases)} cases annotates "
        f"{'all' if options.complete else 'any'} of the structures"
        for kind, (found, _) in chosen.items()
        if not found
    ]
    kept = {kind: found for kind, found in chosen.items() if found[0]}
    if not kept:
        raise RequestError(f"there is nothing to write: {'; '.join(notes)}")
    if options.first_id + len(kept) - 1 > LAST_ID[options.form]:
        last = LAST_ID[options.form]
        raise RequestError(
            f"--id {options.first_id}: {len(kept)} data sets need ids up to {last}; expected a lower one"
        )
    plans = []
    for place, (kind, (found, classes)) in enumerate(kept.items()):
        name = options.name + (kind.title if len(kept) > 1 else "")
        number = options.first_id + place
        folder = f"Task{number:02}_{name}" if options.form == MSD else f"Dataset{number:03}_{name}"
        plans.append(Plan(folder, name, number, kind, tuple(found), classes, options))
    return plans, notes


def _wanted(cases: Sequence[StagedCase], options: Options) -> set[str] | None:
    """The structures that are asked for, as the site spells them; None for all. RequestError for an unknown one."""
    known = {name_key(name): name for case in cases for name in case.structures}
    unknown = [name for name in options.structures if name_key(name) not in known]
    if unknown:
        raise RequestError(
            f"--structures {unknown[0]!r}: no label has it; expected one of {', '.join(sorted(known.values()))}"
        )
    return {known[name_key(name)] for name in options.structures} or None


def _chosen(
    cases: Sequence[StagedCase], wanted: set[str] | None, options: Options
) -> tuple[list[StagedCase], tuple[str, ...]]:
    """The cases of one kind that are written, and their structures by name."""
    found = [case for case in cases if wanted is None or wanted & set(case.structures)]
    names = {name for case in found for name in case.structures if wanted is None or name in wanted}
    if options.complete:
        needed = names if wanted is None else wanted
        found = [case for case in found if needed <= set(case.structures)]
    if options.form == NNUNET and IGNORE in map(name_key, names):
        raise RequestError(
            f"a structure is called {IGNORE!r}, and nnU-Net leaves the voxels of that name out of training; rename it, "
            "or name the others by --structures"
        )
    if len(names) > MAX_CLASSES:
        raise RequestError(
            f"the labels name {len(names)} structures, and a data set can have {MAX_CLASSES}; choose by --structures"
        )
    return found, tuple(sorted(names, key=lambda name: (name_key(name), name)))
