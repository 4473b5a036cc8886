# SPDX-License-Identifier: Apache-2.0
"""The prompts of a request in voxels of the stored volume, and the same prompts slice by slice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.orientation import SliceOrientation
from kprism_model.queries import MAXIMUM_CLICKS, Click
from kprism_model.scribbles import check_scribbles
from kprism_model.volumes.slice_map import SliceMap


@dataclass(frozen=True)
class VoxelClick:
    """A click on a voxel (i, j, k) of the stored volume: inside the structure (positive) or outside it."""

    voxel: tuple[int, int, int]
    positive: bool


@dataclass(frozen=True)
class LocatedClick(VoxelClick):
    """A click whose slice, row and column are known already, see `SliceOrientation.locate`."""

    slice: int
    row: int
    column: int


@dataclass(frozen=True, eq=False)
class StructurePrompts:
    """All prompts of one structure; maps are arrays (i, j, k) on the grid of the stored volume, or `SliceMap`s.

    clicks: in the order in which they were made. scribbles: 1 inside, -1 outside, 0 where nothing is drawn.
    initial_mask: a mask to propagate; a slice where it is not empty keeps it, unless clicks or scribbles correct it.
    previous_mask: the mask so far; prompts correct it on their slices, and it stays on slices that are not computed.
    class_name: a class that the network knows, used together with the clicks on prompted slices.
    known_class: the class of the structure itself, if the network knows it; it joins in propagation (`class_prior`).
    """

    clicks: Sequence[VoxelClick] = ()
    scribbles: NDArray[Any] | SliceMap[Any] | None = None
    initial_mask: NDArray[Any] | SliceMap[Any] | None = None
    previous_mask: NDArray[Any] | SliceMap[Any] | None = None
    class_name: str | None = None
    known_class: str | None = None


@dataclass(frozen=True, eq=False)
class SlicePrompts:
    """The prompts of one structure on one slice: clicks in order and, if there are any, scribbles (row, column)."""

    number: int
    clicks: tuple[Click, ...] = ()
    scribbles: NDArray[np.int8] | None = None

    @property
    def any(self) -> bool:
        """Whether there is a prompt to decode; if not, the initial mask is used unchanged."""
        return bool(self.clicks) or self.scribbles is not None

    @property
    def positive(self) -> bool:
        """Whether at least one prompt is positive."""
        drawn = self.scribbles is not None and bool((self.scribbles == 1).any())
        return drawn or any(click.positive for click in self.clicks)

    def first(self, count: int) -> SlicePrompts:
        """The same prompts with the first `count` clicks only."""
        return replace(self, clicks=self.clicks[:count])

    def digest(self, *more: str) -> str:
        """A key of all fields and of `more`."""
        return digest(str(self.number), repr(self.clicks), digest_of(self.scribbles), *more)


@dataclass(frozen=True, eq=False)
class PromptsBySlice:
    """The checked prompts of one structure, slice by slice.

    clicks: (slice, click) in order. scribbles and initial_masks: by slice, ascending, without empty slices.
    previous_mask: bool, or None.
    """

    class_name: str | None
    clicks: tuple[tuple[int, Click], ...]
    scribbles: dict[int, NDArray[np.int8]]
    initial_masks: dict[int, NDArray[np.bool_]]
    previous_mask: SliceMap[np.bool_] | None
    known_class: str | None = None

    @classmethod
    def of(cls, name: str, prompts: StructurePrompts, orientation: SliceOrientation) -> PromptsBySlice:
        """Check and convert the prompts of the structure `name`; ValueError names it and what is wrong."""
        initial = _mask(name, "initial_mask", prompts.initial_mask, orientation)
        return cls(
            prompts.class_name,
            _clicks(name, prompts.clicks, orientation),
            _scribbles(name, prompts.scribbles, orientation),
            {} if initial is None else {number: initial.on(number) for number in initial.filled},
            _mask(name, "previous_mask", prompts.previous_mask, orientation),
            prompts.known_class,
        )

    @property
    def prompted(self) -> list[int]:
        """The slices with prompts or an initial mask, ascending."""
        return sorted({*self.scribbles, *self.initial_masks, *(number for number, _ in self.clicks)})


def digest(*parts: str) -> str:
    """A key of texts in order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest_of(array: NDArray[Any] | None) -> str:
    """A key of an array's type, shape and content."""
    if array is None:
        return "none"
    content = np.ascontiguousarray(array)
    return f"{content.dtype}{content.shape}{hashlib.sha256(content.tobytes()).hexdigest()}"


def check_contradictions(structures: Mapping[str, StructurePrompts]) -> None:
    """ValueError where one voxel is clicked as inside of two structures."""
    owners: dict[tuple[int, int, int], str] = {}
    for name, prompts in structures.items():
        for click in prompts.clicks:
            if click.positive and owners.setdefault(click.voxel, name) != name:
                raise ValueError(f"voxel {click.voxel} is clicked both as {owners[click.voxel]!r} and as {name!r}")


def _clicks(name: str, clicks: Sequence[VoxelClick], orientation: SliceOrientation) -> tuple[tuple[int, Click], ...]:
    by_slice: list[tuple[int, Click]] = []
    for click in clicks:
        if len(click.voxel) != 3 or not all(float(index).is_integer() for index in click.voxel):
            raise ValueError(f"a click of {name!r} is at {click.voxel}; expected three whole voxel indices (i, j, k)")
        if not all(0 <= index < side for index, side in zip(click.voxel, orientation.shape, strict=True)):
            raise ValueError(
                f"a click of {name!r} is at {click.voxel}, outside the volume of shape {orientation.shape}"
            )
        if isinstance(click, LocatedClick):
            number, row, column = click.slice, click.row, click.column
        else:
            number, row, column = orientation.locate(click.voxel)
        by_slice.append((number, Click(row, column, click.positive)))
    for number in {number for number, _ in by_slice}:
        count = sum(other == number for other, _ in by_slice)
        if count > MAXIMUM_CLICKS:
            raise ValueError(f"{name!r} has {count} clicks on slice {number}; at most {MAXIMUM_CLICKS} are accepted")
    return tuple(by_slice)


def _scribbles(
    name: str, scribbles: NDArray[Any] | SliceMap[Any] | None, orientation: SliceOrientation
) -> dict[int, NDArray[np.int8]]:
    if scribbles is None:
        return {}
    drawn = _map(name, "scribbles", scribbles, orientation)
    return {number: check_scribbles(drawn.on(number), drawn.size) for number in drawn.filled}


def _mask(
    name: str, what: str, mask: NDArray[Any] | SliceMap[Any] | None, orientation: SliceOrientation
) -> SliceMap[np.bool_] | None:
    if mask is None:
        return None
    return _map(name, what, mask, orientation).mapped(lambda values: np.asarray(values, dtype=bool), np.bool_)


def _map(name: str, what: str, values: NDArray[Any] | SliceMap[Any], orientation: SliceOrientation) -> SliceMap[Any]:
    """Values of any kind on the slices of the volume; ValueError if they are on another grid."""
    shape = values.orientation.shape if isinstance(values, SliceMap) else np.shape(values)
    if shape != orientation.shape:
        raise ValueError(f"{what} of {name!r} has shape {shape}, but the volume has shape {orientation.shape}")
    if isinstance(values, SliceMap):
        return values.turned(orientation)
    return SliceMap.of(np.asarray(values), orientation)
