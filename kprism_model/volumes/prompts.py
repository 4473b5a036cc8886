# SPDX-License-Identifier: Apache-2.0
"""What a request says of the structures in a volume, in voxels of the stored array, and the same slice by slice."""

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


@dataclass(frozen=True)
class VoxelClick:
    """A voxel (i, j, k) of the volume as it is stored that is inside the structure (positive) or outside of it."""

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
    """All that a request says of one structure; arrays are (i, j, k) on the grid of the volume as it is stored.

    clicks: in the order in which they were made. scribbles: 1 inside, -1 outside, 0 where nothing is drawn. given: a
    mask to go by; each slice where it is not empty is taken as it is, unless it is clicked or drawn on, and followed
    from there. before: the mask so far; what it holds outside of what is asked for stays, and on a prompted slice it is
    what the prompts correct. class_name: a class that the weights know, used on prompted slices together with clicks.
    """

    clicks: Sequence[VoxelClick] = ()
    scribbles: NDArray[Any] | None = None
    given: NDArray[Any] | None = None
    before: NDArray[Any] | None = None
    class_name: str | None = None


@dataclass(frozen=True, eq=False)
class SlicePrompts:
    """The prompts of one structure on one slice: clicks in order and scribbles (row, column), if any."""

    number: int
    clicks: tuple[Click, ...] = ()
    scribbles: NDArray[np.int8] | None = None

    @property
    def any(self) -> bool:
        """Whether there is anything to decode, rather than a mask to take as it is."""
        return bool(self.clicks) or self.scribbles is not None

    @property
    def positive(self) -> bool:
        """Whether anything says where the structure is, rather than where it is not."""
        drawn = self.scribbles is not None and bool((self.scribbles == 1).any())
        return drawn or any(click.positive for click in self.clicks)

    def first(self, count: int) -> SlicePrompts:
        """The same with the first `count` clicks."""
        return replace(self, clicks=self.clicks[:count])

    def digest(self, *more: str) -> str:
        """A key of all that is in here and of `more`."""
        return digest(str(self.number), repr(self.clicks), digest_of(self.scribbles), *more)


@dataclass(frozen=True, eq=False)
class SliceTask:
    """The prompts of one structure, checked and slice by slice.

    clicks: (slice, click) in order. scribbles and given: by slice, only where there is something, in ascending order.
    before: bool (slice, row, column), or None.
    """

    class_name: str | None
    clicks: tuple[tuple[int, Click], ...]
    scribbles: dict[int, NDArray[np.int8]]
    given: dict[int, NDArray[np.bool_]]
    before: NDArray[np.bool_] | None

    @classmethod
    def of(cls, name: str, prompts: StructurePrompts, orientation: SliceOrientation) -> SliceTask:
        """Check and convert what is said of the structure `name`; ValueError names it and what was wrong."""
        given = _mask(name, "given", prompts.given, orientation)
        return cls(
            prompts.class_name,
            _clicks(name, prompts.clicks, orientation),
            _scribbles(name, prompts.scribbles, orientation),
            {} if given is None else {number: given[number].copy() for number in _filled(given)},
            _mask(name, "before", prompts.before, orientation),
        )

    @property
    def prompted(self) -> list[int]:
        """Slices that hold prompts, ascending."""
        return sorted({*self.scribbles, *self.given, *(number for number, _ in self.clicks)})


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
    found: list[tuple[int, Click]] = []
    for click in clicks:
        if len(click.voxel) != 3 or any(int(index) != index for index in click.voxel):
            raise ValueError(f"a click of {name!r} is at {click.voxel}; expected three whole voxel indices (i, j, k)")
        if not all(0 <= index < side for index, side in zip(click.voxel, orientation.shape, strict=True)):
            raise ValueError(f"a click of {name!r} is at {click.voxel}, outside of the volume {orientation.shape}")
        if isinstance(click, LocatedClick):
            number, row, column = click.slice, click.row, click.column
        else:
            number, row, column = orientation.locate(click.voxel)
        found.append((number, Click(row, column, click.positive)))
    for number in {number for number, _ in found}:
        count = sum(other == number for other, _ in found)
        if count > MAXIMUM_CLICKS:
            raise ValueError(f"{name!r} has {count} clicks on slice {number}; at most {MAXIMUM_CLICKS} are accepted")
    return tuple(found)


def _scribbles(name: str, scribbles: NDArray[Any] | None, orientation: SliceOrientation) -> dict[int, NDArray[np.int8]]:
    if scribbles is None:
        return {}
    _check_shape(name, "scribbles", scribbles, orientation)
    slices = orientation.to_slices(np.asarray(scribbles))
    size = (slices.shape[1], slices.shape[2])
    return {number: check_scribbles(slices[number], size) for number in _filled(slices)}


def _mask(name: str, what: str, mask: NDArray[Any] | None, orientation: SliceOrientation) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    _check_shape(name, what, mask, orientation)
    return orientation.to_slices(np.asarray(mask, dtype=bool))


def _check_shape(name: str, what: str, array: NDArray[Any], orientation: SliceOrientation) -> None:
    if np.shape(array) != orientation.shape:
        raise ValueError(f"{what} of {name!r} has shape {np.shape(array)}, the volume {orientation.shape}")


def _filled(slices: NDArray[Any]) -> list[int]:
    """Numbers of the slices that are not empty."""
    return [int(number) for number in np.flatnonzero(slices.any(axis=(1, 2)))]
