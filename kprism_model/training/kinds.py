# SPDX-License-Identifier: Apache-2.0
"""The kind head fitted to a network's features as they are: a minute, and no other answer of the network changes.

Images of every kind, randomly changed, are encoded once. Centres are the means of kinds, and distances are taken in the
space in which all kinds together have unit covariance (Mahalanobis distance, Lee et al., arXiv 1807.03888). What must
not count as known is shown, too: synthetic and broken images and, in turn, each kind to a head that does not know it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from tqdm import tqdm

from kprism_model.classes import ClassRegistry
from kprism_model.data.augment import Augmentation, augment_batch
from kprism_model.data.kinds import kind_name, kind_names, possible_kinds
from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.synthetic import synthetic_group
from kprism_model.network.kinds import KIND_WIDTH, KindHead
from kprism_model.network.kprism import KPrism

logger = logging.getLogger(__name__)

IMAGES = 96
"""Images of each kind that are looked at, and as many broken and synthetic ones."""

_BATCH = 8
_SHRINKAGE = 0.1  # of the covariance towards a multiple of the unit matrix
_HELD_OUT = 4  # every fourth image tells how sure the head may be
_KNOWN_WEIGHT = 60.0  # a known kind that is refused loses all its structures; presence guards what is not refused


class Seen(NamedTuple):
    """What the head sees of N images: `pooled` (N, C) and `kind` (N,), K for none of K kinds; `held_out` (N,) bool."""

    pooled: Tensor
    kind: Tensor
    held_out: Tensor


class Space(NamedTuple):
    """Where distances are taken: `projection` (KIND_WIDTH, C) and `offset` (KIND_WIDTH,); `centres` (K, KIND_WIDTH)."""

    projection: Tensor
    offset: Tensor
    centres: Tensor

    def distances(self, pooled: Tensor) -> Tensor:
        """Half the squared distances of images (N, C) to the centres: (N, K)."""
        placed = pooled @ self.projection.T + self.offset
        return 0.5 * torch.cdist(placed, self.centres).square()


def with_kinds(model: KPrism, registry: ClassRegistry, store: SliceStore) -> KPrism:
    """The same network with a new kind head for the kinds of images in `store`, not fitted yet."""
    config = replace(model.config, kinds=kind_names(store.sets))
    extended = KPrism(config)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("kind_head.")}
    extended.load_state_dict({**extended.state_dict(), **state})
    extended.to(next(model.parameters()).device).eval()
    mark_possible(extended, registry, store)
    return extended


def mark_possible(model: KPrism, registry: ClassRegistry, store: SliceStore) -> None:
    """Tell the kind head of `model` in place which classes can be in which kinds, by the metadata of the sets.

    Classes that no set has can be everywhere.
    """
    assert model.kind_head is not None
    for name, kinds in possible_kinds(store.sets).items():
        row = [kind in kinds for kind in model.config.kinds]
        model.kind_head.possible[registry.index(name)] = torch.tensor([*row, False])


def fit_kinds(
    model: KPrism,
    store: SliceStore,
    *,
    seed: int,
    images: int = IMAGES,
    augmentation: Augmentation | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Fit `model.kind_head` in place to the kinds of images in `store`; the network is left in eval mode.

    Returns shares of held-out images that were told right: "known" of known kinds, and "unknown" of broken and
    synthetic ones and of each kind that was kept from the head. ValueError if the store has other kinds of images than
    the network.
    """
    if model.kind_head is None or model.config.kinds != kind_names(store.sets):
        raise ValueError(f"the network knows the kinds {list(model.config.kinds)}, not {list(kind_names(store.sets))}")
    drawer = Drawer(store, model.config.native_size, seed, augmentation or Augmentation())
    seen = _look(model.eval(), drawer, images, progress)
    count = len(model.config.kinds)
    known, unknown = _held_out_distances(seen, count)
    scale, none = calibrate(known, unknown)
    labelled = seen.kind < count
    space = fit_space(seen.pooled[labelled], seen.kind[labelled], range(count))
    head, root = model.kind_head, scale**0.5
    with torch.no_grad():
        head.projection.weight.copy_(root * space.projection)
        head.projection.bias.copy_(root * space.offset)
        head.centres.copy_(root * space.centres)
        head.none.fill_(none)
    found = _shares(known, unknown, scale, none)
    logger.info("Kinds of images: %s", ", ".join(f"{name} {share:.3f}" for name, share in found.items()))
    return found


def fit_space(pooled: Tensor, kind: Tensor, kinds: Sequence[int]) -> Space:
    """The space in which the images of `kinds` together have unit covariance about their centres.

    `pooled` (N, C), `kind` (N,). It has the directions in which the images differ most.
    """
    rows = [pooled[kind == number].double() for number in kinds]
    centres = torch.stack([row.mean(dim=0) for row in rows])
    within = torch.stack([torch.cov(row.T) for row in rows]).mean(dim=0)
    within = torch.lerp(within, within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype), _SHRINKAGE)
    widest = torch.linalg.eigh(within + torch.cov(centres.T)).eigenvectors[:, -KIND_WIDTH:]
    values, axes = torch.linalg.eigh(widest.T @ within @ widest)
    projection = (widest @ (axes / values.sqrt())).T
    offset = -projection @ centres.mean(dim=0)
    return Space(projection.float(), offset.float(), (centres @ projection.T + offset).float())


class Judged(NamedTuple):
    """Distances (N, K) of held-out images, and which kind is right: (N,), or K where none is."""

    distances: Tensor
    right: Tensor


def calibrate(known: Judged, unknown: Judged) -> tuple[float, float]:
    """The factor of distances and the logit of "none" that make probabilities right on what was held out.

    The best of a grid by cross-entropy: it is the same wherever it runs, and has an answer where all is told right.
    """
    reaches = torch.cat([judged.distances.amin(dim=1) for judged in (known, unknown)])
    best = (torch.inf, 1.0, 0.0)
    for scale in torch.logspace(-2.5, 0, 26).tolist():
        for reach in reaches.quantile(torch.linspace(0, 1, 41)).tolist():
            losses = [
                float(F.cross_entropy(_logits(judged.distances, scale, -scale * reach), judged.right))
                for judged in (known, unknown)
            ]
            best = min(best, (_KNOWN_WEIGHT * losses[0] + losses[1], scale, -scale * reach))
    return best[1:]


def _logits(distances: Tensor, scale: float, none: float) -> Tensor:
    return F.pad(-scale * distances, (0, 1)) + F.pad(torch.zeros_like(distances), (0, 1), value=1.0) * none


def _held_out_distances(seen: Seen, count: int) -> tuple[Judged, Judged]:
    """Held-out images of known kinds; images of kinds that a space in turn does not know, broken and synthetic ones."""
    fitted, kinds = ~seen.held_out, range(count)
    shown = seen.held_out & (seen.kind < count)
    fitted &= seen.kind < count
    space = fit_space(seen.pooled[fitted], seen.kind[fitted], kinds)
    known = Judged(space.distances(seen.pooled[shown]), seen.kind[shown])
    unlike = [space.distances(seen.pooled[seen.kind == count])]
    for kind in kinds if count > 2 else ():
        others = [other for other in kinds if other != kind]
        without = fit_space(seen.pooled[fitted], seen.kind[fitted], others)
        distances = torch.full((int((seen.kind == kind).sum()), count), torch.inf)
        distances[:, others] = without.distances(seen.pooled[seen.kind == kind])
        unlike.append(distances)
    distances = torch.cat(unlike)
    return known, Judged(distances, torch.full((len(distances),), count))


def _shares(known: Judged, unknown: Judged, scale: float, none: float) -> dict[str, float]:
    """Shares of held-out images that are told right, "known", and refused, "unknown"."""
    return {
        name: float((_logits(judged.distances, scale, none).argmax(dim=1) == judged.right).float().mean())
        for name, judged in (("known", known), ("unknown", unknown))
    }


@torch.no_grad()
def _look(model: KPrism, drawer: Drawer, images: int, progress: bool) -> Seen:
    """What the head sees of `images` images of each kind, and of as many broken and synthetic ones."""
    device = next(model.parameters()).device
    parts: list[Seen] = []
    count = len(model.config.kinds)
    with tqdm(total=(count + 1) * images, desc="kinds", disable=not progress) as bar:
        for kind, batch in drawer.batches(model.config.kinds, images):
            pooled = KindHead.pooled(model.encode_image(batch.to(device))).cpu()
            parts.append(Seen(pooled, torch.full((len(batch),), kind), torch.zeros(len(batch), dtype=torch.bool)))
            bar.update(len(batch))
    seen = Seen(*(torch.cat(values) for values in zip(*parts, strict=True)))
    for kind in range(count):
        rows = (seen.kind == kind).nonzero().flatten()
        seen.held_out[rows[::_HELD_OUT]] = True
    return seen


class Drawer:
    """Draws images (n, 3, size, size) from a store, changed at random."""

    def __init__(self, store: SliceStore, size: int, seed: int, augmentation: Augmentation) -> None:
        self._store, self._size, self._augmentation = store, size, augmentation
        self._rng = np.random.default_rng(seed)
        self._generator = Generator().manual_seed(seed)

    def batches(self, kinds: Sequence[str], images: int) -> Iterator[tuple[int, Tensor]]:
        """Images of each kind, from its sets in turn, and of none, with the number of the kind, K for none."""
        sets = [[part for part in self._store.sets if kind_name(part) == kind] for kind in kinds]
        for start in range(0, images, _BATCH):
            places = range(start, min(start + _BATCH, images))
            for kind, parts in enumerate(sets):
                yield kind, self.slices([parts[place % len(parts)] for place in places])
            yield len(kinds), self.nothing(len(places))

    def slices(self, parts: Sequence[SliceSet]) -> Tensor:
        """A slice of each set."""
        side = self._store.size
        canvas = np.zeros((len(parts), 3, side, side), dtype=np.uint8)
        content = np.zeros((len(parts), 2), dtype=np.int64)
        for place, part in enumerate(parts):
            row = self._rng.integers(len(part))
            canvas[place] = part.images[row].transpose(2, 0, 1)
            content[place] = part.content[row]
        images, _ = augment_batch(
            torch.from_numpy(canvas),
            torch.zeros(len(parts), 1, side, side, dtype=torch.bool),
            self._generator,
            size=self._size,
            content=torch.from_numpy(content),
            settings=self._augmentation,
        )
        return images

    def nothing(self, count: int) -> Tensor:
        """Images that show nothing: half of them synthetic ones, the others slices whose parts are mixed up."""
        chosen = self._rng.integers(len(self._store.sets), size=(count + 1) // 2)
        broken = break_images(self.slices([self._store.sets[number] for number in chosen]), self._generator)
        if count == 1:
            return broken
        return torch.cat([broken, synthetic_group(count // 2, self._size, self._generator)[0]])


def break_images(images: Tensor, generator: Generator) -> Tensor:
    """Images (n, 3, S, S) inverted and blurred, their sixteen parts in random order."""
    blurred = F.avg_pool2d(F.pad(1 - images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    side = images.shape[-1] // 4
    parts = F.unfold(blurred, side, stride=side)
    return F.fold(parts[:, :, torch.randperm(16, generator=generator)], images.shape[-2:], side, stride=side)
