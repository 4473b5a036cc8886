# SPDX-License-Identifier: Apache-2.0
"""Sampling of sequences of neighbouring slices, on which propagation is trained as it is done.

A sequence starts at a slice that shows the structure, and goes on in one direction: through real slices, or through a
pseudo-volume made of one picture. All its slices are augmented in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.augment import Augmentation, change_intensity, random_affine, stacked_channels
from kprism_model.data.batch import SequenceBatch
from kprism_model.data.pseudo_volumes import slice_grids
from kprism_model.data.sequences import slice_runs
from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.targets import MINIMUM_PIXELS, Target, component_of, targets
from kprism_model.data.windows import crop_to_windows, random_windows

T = TypeVar("T")

_ATTEMPTS = 20  # to find a first slice; then the structure may end or not
_SMALLEST = 30  # pixels of a structure in the first slice; if augmentation leaves fewer, its geometry is left out


@dataclass(frozen=True)
class SequenceMixture:
    """The composition of sequences, as chances.

    `pseudo`: a pseudo-volume instead of real slices. `ends`: the structure ends within the sequence. `window`: the
    sequence is seen in a window around the structure. `thick`: every second slice is left out. `blurred`: slices are
    mixed with their neighbours, as in thick ones.
    """

    pseudo: float = 0.6
    ends: float = 0.45
    window: float = 0.5
    thick: float = 0.25
    blurred: float = 0.3

    def __post_init__(self) -> None:
        """Refuse invalid chances, naming the field."""
        for name, chance in vars(self).items():
            if not 0 <= chance <= 1:
                raise ValueError(f"SequenceMixture.{name} must lie in [0, 1], got {chance}")


@dataclass(frozen=True)
class _Source:
    """The T slices of a sequence on the store's canvas: uint8 (T, 3, side, side), bool (T, 1, side, side)."""

    images: Tensor
    masks: Tensor
    content: Tensor


class SequenceSampler:
    """Draws sequences: a data set by weight, then a class, a case and a first slice, each uniformly.

    A batch depends only on `seed` and its step. ValueError if the store has nothing to draw.
    """

    def __init__(
        self,
        store: SliceStore,
        *,
        seed: int,
        dataset_weights: Mapping[str, float] | None = None,
        mixture: SequenceMixture | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self._side = store.size
        self._seed = seed
        self._mixture = mixture or SequenceMixture()
        self._augmentation = augmentation or Augmentation()
        weights = {part.name: part.weight for part in store.sets} | dict(dataset_weights or {})
        sets = [part for part in store.sets if weights[part.name] > 0]
        self._pictures = [(weights[part.name], found) for part in sets if (found := targets(part))]
        self._stacks = [(weights[part.name], stacks) for part in sets if (stacks := _stacks(part))]
        if not self._pictures:
            raise ValueError(f"no slice in {store.path} shows {MINIMUM_PIXELS} pixels of a class of a data set in use")

    def batch(self, n: int, length: int, *, step: int, size: int) -> SequenceBatch:
        """The batch of a step: n sequences of `length` slices of `size` x `size` pixels."""
        if n < 1 or length < 2:
            raise ValueError(f"expected 1 sequence or more of 2 slices or more, got {n} of {length}")
        rng = np.random.default_rng([self._seed, step, length])
        drawn = [self._sequence(length, size, rng) for _ in range(n)]
        images, masks = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        return SequenceBatch(images, masks)

    def _sequence(self, length: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        ends = bool(rng.random() < self._mixture.ends)
        pseudo = not self._stacks or bool(rng.random() < self._mixture.pseudo)
        source = self._picture(rng) if pseudo else self._stack(length, ends, rng)
        if rng.random() < self._mixture.window:
            source = _in_window(source, size, rng)
        images, masks, inside = self._resampled(source, length, size, ends and pseudo, generator, rng)
        if rng.random() < self._mixture.blurred:
            images = torch.cat([images[:1], (images[1:] + images[:-1]) / 2])
        # One tall image, so that all slices change in the same way.
        tall = images.permute(1, 0, 2, 3).reshape(1, 3, length * size, size)
        outside = inside.permute(1, 0, 2, 3).reshape(1, 1, length * size, size)
        changed = change_intensity(tall, outside, self._augmentation, generator) * outside
        return changed.reshape(3, length, size, size).permute(1, 0, 2, 3), (masks > 0.5).float()

    def _picture(self, rng: np.random.Generator) -> _Source:
        """One slice, of which a pseudo-volume is made."""
        of_set = _drawn(self._pictures, rng)
        target = of_set[rng.integers(len(of_set))]
        row = int(rng.choice(target.shown[rng.integers(len(target.shown))]))
        mask = target.mask(row)
        component, many = component_of(target, row, mask, rng)
        if component is not None and (many or rng.random() < 0.5):
            mask = component
        return _source(target.slice_set, [row], mask[None])

    def _stack(self, length: int, ends: bool, rng: np.random.Generator) -> _Source:
        """Neighbouring slices from one that shows the structure, in either direction."""
        of_set, runs = _drawn(self._stacks, rng)
        start, attempts = None, 0
        while start is None:  # some run shows a class, see `_stacks`
            target = of_set[rng.integers(len(of_set))]
            run = runs[rng.integers(len(runs))]
            run = run[:: int(rng.choice([-1, 1]))]
            if rng.random() < self._mixture.thick and len(run) >= 2 * length:
                run = run[int(rng.integers(2)) :: 2]
            shown = target.slice_set.pixels[run, target.column] >= MINIMUM_PIXELS
            start = _start(shown, length, ends if attempts < _ATTEMPTS else None, rng)
            attempts += 1
        rows = run[np.minimum(np.arange(start, start + length), len(run) - 1)]
        return _source(target.slice_set, rows, np.stack([target.mask(row) for row in rows]))

    def _resampled(
        self,
        source: _Source,
        length: int,
        size: int,
        ends: bool,
        generator: torch.Generator,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (T, 3, S, S) in [0, 1], masks and maps of the pixels without padding (T, 1, S, S), all resampled."""
        share = source.content.float() / self._side
        stacked = stacked_channels(source.images, source.masks, share, size)
        for settings in (self._augmentation, self._augmentation.without_geometry()):
            theta = random_affine(share[:1], settings, generator)
            grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
            first = F.grid_sample(stacked[:1], grid, align_corners=False)[0, 3].numpy() > 0.5
            if np.count_nonzero(first) >= _SMALLEST:
                break
        shown = np.ones(length, bool)
        if len(stacked) == 1 and first.any():
            changed, shown = slice_grids(first, length, ends, rng)
            grid = changed @ theta[0, :, :2].T + theta[0, :, 2]
        moved = F.grid_sample(stacked.expand(length, -1, -1, -1), grid.expand(length, -1, -1, -1), align_corners=False)
        masks = moved[:, 3:4] * torch.from_numpy(shown).float()[:, None, None, None]
        return moved[:, :3] / 255, masks, (moved[:, 4:] > 0.5).float()


def _stacks(slice_set: SliceSet) -> tuple[list[Target], list[NDArray[np.int64]]] | None:
    """The classes of a data set, and the runs of slices that show at least one; None if there are none."""
    of_set = targets(slice_set)
    shows = np.zeros(len(slice_set), bool)
    for target in of_set:
        shows |= slice_set.pixels[:, target.column] >= MINIMUM_PIXELS
    runs = [run for run in slice_runs(slice_set) if shows[run].any()]
    return (of_set, runs) if runs else None


def _source(slice_set: SliceSet, rows: NDArray[np.int64] | list[int], masks: NDArray[np.bool_]) -> _Source:
    images = torch.from_numpy(np.stack([slice_set.images[row] for row in rows])).permute(0, 3, 1, 2)
    content = torch.from_numpy(slice_set.content[np.asarray(rows)])
    return _Source(images.expand(-1, 3, -1, -1), torch.from_numpy(masks)[:, None], content)


def _in_window(source: _Source, size: int, rng: np.random.Generator) -> _Source:
    """The slices in one window around the structure in all of them."""
    union = source.masks.any(dim=0, keepdim=True)
    windows = random_windows(union, None, size, rng) * len(source.images)
    return _Source(*crop_to_windows(source.images, source.masks, source.content, windows))


def _start(shown: NDArray[np.bool_], length: int, ends: bool | None, rng: np.random.Generator) -> int | None:
    """A position that shows the structure, from which it `ends` within `length` slices or not; None if there is none.

    If `ends` is None, any position with at least one slice after it will do.
    """
    positions = np.flatnonzero(shown[:-1])
    if ends is not None:
        positions = positions[positions + length <= len(shown)]
        positions = positions[shown[positions + length - 1] != ends]
    return int(rng.choice(positions)) if len(positions) else None


def _drawn(weighted: Sequence[tuple[float, T]], rng: np.random.Generator) -> T:
    """One of the values, by its weight."""
    shares = np.array([weight for weight, _ in weighted])
    return weighted[rng.choice(len(weighted), p=shares / shares.sum())][1]
