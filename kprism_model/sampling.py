# SPDX-License-Identifier: Apache-2.0
"""Which slices a training batch is made of: one mode a batch, every data set, class and case with its fair share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kprism_model.augment import Augmentation, augment_batch
from kprism_model.classes import ClassRegistry
from kprism_model.slices import SliceSet, SliceStore

Mode = Literal["semantic", "in_context", "interactive"]
MODES: tuple[Mode, ...] = ("semantic", "in_context", "interactive")

MINIMUM_PIXELS = 20
"""A slice shows a class if it holds this many pixels of it."""

_LOST_PIXELS = 8  # an augmented object of fewer pixels is augmented again without geometry
_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Batch:
    """n images with the object asked for in each, all of one mode.

    images: float32 (n, 3, S, S) in [0, 1]. masks: float32 (n, 1, S, S) of 0 and 1. class_index: int64 (n,), the class's
    row in the registry, -1 for an object that is no class (interactive mode). present: bool (n,), whether the mask
    holds a pixel. reference_images (n, R, 3, S, S) and reference_masks (n, R, 1, S, S): in in-context mode only.
    dataset: the name of each row's data set.
    """

    mode: Mode
    images: Tensor
    masks: Tensor
    class_index: Tensor
    present: Tensor
    reference_images: Tensor | None
    reference_masks: Tensor | None
    dataset: tuple[str, ...]


class _Picture(NamedTuple):
    """A slice and an object in it, on the store's canvas."""

    part: SliceSet
    row: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class _Target:
    """A class of one data set, with the slices that show it and those without it, a list entry for each case."""

    part: SliceSet
    column: int
    value: int
    name: str
    shown: Sequence[NDArray[np.int64]]
    absent: Sequence[NDArray[np.int64]]

    def mask(self, row: int) -> NDArray[np.bool_]:
        """Where the class is in a slice, bool (size, size)."""
        mask: NDArray[np.bool_] = self.part.labels[row] == self.value
        return mask


class Sampler:
    """Draws batches: a data set by weight, then a class, a case and a slice, each uniformly.

    `registry` gives `Batch.class_index`; by default it is made of the store's class names. `dataset_weights` by data
    set name; those not named weigh 1. Batches depend on `seed` and their step alone. Raises ValueError for an unknown
    data set name, a weight below zero, a class that the registry lacks, or a store in which nothing can be drawn.
    """

    def __init__(
        self,
        store: SliceStore,
        *,
        seed: int,
        registry: ClassRegistry | None = None,
        dataset_weights: Mapping[str, float] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.store = store
        self.registry = registry or ClassRegistry(store.class_names)
        self._seed = seed
        self._augmentation = augmentation or Augmentation()
        weights = dict(dataset_weights or {})
        unknown = sorted(set(weights) - {part.name for part in store.sets})
        if unknown or any(not weight >= 0 for weight in weights.values()):
            raise ValueError(f"dataset_weights must give {[p.name for p in store.sets]} weights from 0, got {weights}")
        targets = {part.name: _targets(part) for part in store.sets if weights.get(part.name, 1.0) > 0}
        for target in (target for group in targets.values() for target in group):
            self.registry.index(target.name)
        self._targets: dict[Mode, list[list[_Target]]] = {}
        self._shares: dict[Mode, NDArray[np.float64]] = {}
        for mode in MODES:
            fit = {
                name: [t for t in group if mode != "in_context" or _patients(t) > 1] for name, group in targets.items()
            }
            self._targets[mode] = [group for group in fit.values() if group]
            shares = np.array([weights.get(name, 1.0) for name, group in fit.items() if group])
            self._shares[mode] = shares / shares.sum()
        if not self._targets["semantic"]:
            raise ValueError(f"no slice in {store.path} shows {MINIMUM_PIXELS} pixels of a class of a data set in use")

    def batch(
        self,
        mode: Mode,
        n: int,
        *,
        step: int,
        size: int,
        references: int = 1,
        absent_fraction: float = 0.15,
        composite_fraction: float = 0.25,
    ) -> Batch:
        """The batch of `step`: n augmented images of `size` x `size` pixels.

        In semantic and in-context mode `absent_fraction` of the rows ask for a class that the image does not hold:
        another image of the data set or, where all of its images hold the class, one of another modality. In in-context
        mode `references` images come from other patients of the data set and show the class. In interactive mode
        `composite_fraction` of the objects are, where the image allows it, a union of classes or one component of one.
        """
        if mode not in MODES or not self._targets[mode]:
            raise ValueError(
                f"cannot draw {mode!r} from {self.store.path}: one of {MODES}; in_context needs two patients"
            )
        if n < 1 or references < 1 or step < 0:
            raise ValueError(f"n and references must be 1 or more, step 0 or more, got {n}, {references}, {step}")
        rng = np.random.default_rng([self._seed, step])
        queries: list[_Picture] = []
        shown: list[_Picture] = []
        index: list[int] = []
        for _ in range(n):
            target = self._draw_target(mode, rng)
            if mode == "interactive":
                query, is_class = _draw_object(target, composite_fraction, rng)
            else:
                absent = rng.random() < absent_fraction
                query, is_class = self._draw_absent(target, rng) if absent else _draw_shown(target, rng), True
            queries.append(query)
            index.append(self.registry.index(target.name) if is_class else -1)
            if mode == "in_context":
                shown += _draw_references(target, query, references, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        images, masks = self._augment(queries + shown, size, generator)
        return Batch(
            mode,
            images[:n],
            masks[:n],
            torch.tensor(index),
            masks[:n].flatten(1).any(dim=1),
            images[n:].view(n, references, 3, size, size) if shown else None,
            masks[n:].view(n, references, 1, size, size) if shown else None,
            tuple(picture.part.name for picture in queries),
        )

    def _draw_target(self, mode: Mode, rng: np.random.Generator) -> _Target:
        groups = self._targets[mode]
        group = groups[rng.choice(len(groups), p=self._shares[mode])]
        return group[rng.integers(len(group))]

    def _draw_absent(self, target: _Target, rng: np.random.Generator) -> _Picture:
        """A slice without the target's class; one that shows it if there is no such slice in the whole store."""
        empty = np.zeros((self.store.size, self.store.size), dtype=bool)
        if target.absent:
            return _Picture(target.part, _draw_slice(target.absent, rng), empty)
        others = [
            part
            for part in self.store.sets
            if part.modality != target.part.modality
            and target.name.casefold() not in {name.casefold() for name in part.classes.values()}
        ]
        if not others:
            return _draw_shown(target, rng)
        part = others[rng.integers(len(others))]
        return _Picture(part, _draw_slice(_by_case(part, np.arange(len(part))), rng), empty)

    def _augment(self, pictures: Sequence[_Picture], size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        side = self.store.size
        pixels = np.empty((len(pictures), 3, side, side), dtype=np.uint8)
        for canvas, picture in zip(pixels, pictures, strict=True):
            canvas[:] = picture.part.images[picture.row].transpose(2, 0, 1)
        images = torch.from_numpy(pixels)
        whole = torch.from_numpy(np.stack([picture.mask for picture in pictures])[:, None])
        content = torch.from_numpy(np.stack([picture.part.content[picture.row] for picture in pictures]))
        changed, masks = augment_batch(
            images, whole, generator, size=size, content=content, settings=self._augmentation
        )
        lost = (masks.sum(dim=(1, 2, 3)) < _LOST_PIXELS) & whole.flatten(1).any(dim=1)
        if lost.any():
            changed[lost], masks[lost] = augment_batch(
                images[lost],
                whole[lost],
                generator,
                size=size,
                content=content[lost],
                settings=self._augmentation.without_geometry(),
            )
        return changed, masks


def _targets(part: SliceSet) -> list[_Target]:
    """The classes of a data set that at least one slice shows."""
    targets = []
    for column, (value, name) in enumerate(part.classes.items()):
        shown = _by_case(part, np.flatnonzero(part.pixels[:, column] >= MINIMUM_PIXELS))
        absent = _by_case(part, np.flatnonzero(part.pixels[:, column] == 0))
        if shown:
            targets.append(_Target(part, column, value, name, shown, absent))
    return targets


def _by_case(part: SliceSet, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Slices grouped by case; rows of a case lie together in the store."""
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero(np.diff(part.case[rows])) + 1)


def _patients(target: _Target) -> int:
    return len({int(target.part.patient[rows[0]]) for rows in target.shown})


def _draw_slice(cases: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> int:
    return int(rng.choice(cases[rng.integers(len(cases))]))


def _draw_shown(target: _Target, rng: np.random.Generator) -> _Picture:
    row = _draw_slice(target.shown, rng)
    return _Picture(target.part, row, target.mask(row))


def _draw_references(target: _Target, query: _Picture, count: int, rng: np.random.Generator) -> list[_Picture]:
    """Slices that show the class, of patients other than the query's; of different cases as far as there are enough."""
    patient = int(query.part.patient[query.row]) if query.part is target.part else -1
    others = [rows for rows in target.shown if target.part.patient[rows[0]] != patient]
    chosen = rng.choice(len(others), count, replace=count > len(others))
    rows = [int(rng.choice(others[case])) for case in chosen]
    return [_Picture(target.part, row, target.mask(row)) for row in rows]


def _draw_object(target: _Target, composite_fraction: float, rng: np.random.Generator) -> tuple[_Picture, bool]:
    """An object to click on, and whether it is the whole class: else a union of classes or one component."""
    whole = _draw_shown(target, rng)
    if rng.random() >= composite_fraction:
        return whole, True
    options = [mask for mask in (_union(whole, rng), _component(target, whole, rng)) if mask is not None]
    if not options:
        return whole, True
    return whole._replace(mask=options[rng.integers(len(options))]), False


def _union(picture: _Picture, rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """Two or more of the classes that the slice holds, None if it holds fewer."""
    values = np.array(list(picture.part.classes))[picture.part.pixels[picture.row] > 0]
    if len(values) < 2:
        return None
    chosen = rng.choice(values, rng.integers(2, len(values) + 1), replace=False)
    union: NDArray[np.bool_] = np.isin(picture.part.labels[picture.row], chosen)
    return union


def _component(target: _Target, picture: _Picture, rng: np.random.Generator) -> NDArray[np.bool_] | None:
    """One connected component that is large enough, None if the class is a single component."""
    components, count = ndimage.label(picture.mask, _CONNECTED)
    if count < 2:
        return None
    areas = np.bincount(components.ravel())[1:]
    areas = areas * (target.part.pixels[picture.row, target.column] / areas.sum())  # pixels as SliceSet counts them
    large = np.flatnonzero(areas >= MINIMUM_PIXELS)
    if not len(large):
        return None
    component: NDArray[np.bool_] = components == 1 + rng.choice(large)
    return component
