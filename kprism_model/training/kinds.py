# SPDX-License-Identifier: Apache-2.0
"""The kind head fitted to a network's features as they are: a minute, and no other answer of the network changes.

Images of every data set, randomly changed, are encoded once. Centres are the means of sets, and distances are taken in
the space in which all sets together have unit covariance (Mahalanobis distance, Lee et al., arXiv 1807.03888). How sure
the head may be is learned from what it has not seen: each set in turn, which is of a known kind while another set is of
the same, or else of none; and synthetic and broken images, which are of none.
"""

from __future__ import annotations

import logging
from collections import Counter
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
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kinds import KIND_WIDTH, KindHead, kind_logits
from kprism_model.network.kprism import KPrism

logger = logging.getLogger(__name__)

IMAGES = 64
"""Images of each set that are looked at, and as many broken and synthetic ones."""

_BATCH = 8
_SHRINKAGE = 0.1  # of the covariance towards a multiple of the unit matrix
_HELD_OUT = 4  # every fourth image tells how sure the head may be
_KNOWN_WEIGHT = 200.0  # a known kind that is refused loses all its structures; presence guards what is not refused


class Seen(NamedTuple):
    """What the head sees of N images: `pooled` (N, C), `group` (N,) and `held_out` (N,) bool.

    A group is the place of a set among G that are ordered by kind, or G for images of no set.
    """

    pooled: Tensor
    group: Tensor
    held_out: Tensor


class Space(NamedTuple):
    """Where distances are taken: `projection` (W, C) and `offset` (W,); `centres` (G, W)."""

    projection: Tensor
    offset: Tensor
    centres: Tensor

    def distances(self, pooled: Tensor) -> Tensor:
        """Half the squared distances of images (N, C) to the centres: (N, G)."""
        placed = pooled @ self.projection.T + self.offset
        return 0.5 * torch.cdist(placed, self.centres).square()


def sets_by_kind(sets: Sequence[SliceSet]) -> list[SliceSet]:
    """The sets in the order of the centres: by kind, those of one kind as given."""
    return sorted(sets, key=kind_name)


def config_with_kinds(config: KPrismConfig, sets: Sequence[SliceSet]) -> KPrismConfig:
    """The same sizes with the kinds of images in `sets`, and a centre for each set."""
    kinds = kind_names(sets)
    counts = Counter(map(kind_name, sets))
    return replace(config, kinds=kinds, kind_centres=tuple(counts[kind] for kind in kinds))


def with_kinds(model: KPrism, registry: ClassRegistry, store: SliceStore) -> KPrism:
    """The same network with a new kind head for the kinds of images in `store`, not fitted yet."""
    extended = KPrism(config_with_kinds(model.config, store.sets))
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
    synthetic ones and of sets that were kept from the head, whose kind it did not know then. ValueError if the store
    has other kinds of images, or other numbers of sets of a kind, than the network.
    """
    if model.kind_head is None or config_with_kinds(model.config, store.sets) != model.config:
        raise ValueError(f"the network knows the kinds {list(model.config.kinds)}, not {list(kind_names(store.sets))}")
    drawer = Drawer(store, model.config.native_size, seed, augmentation or Augmentation())
    seen = _look(model.eval(), drawer, images, progress)
    counts = model.kind_head.counts
    known, unknown = held_out_distances(seen, counts)
    scale, none = calibrate(known, unknown, counts)
    labelled = seen.group < sum(counts)
    space = fit_space(seen.pooled[labelled], seen.group[labelled], range(sum(counts)))
    head, root = model.kind_head, scale**0.5
    with torch.no_grad():
        head.projection.weight.copy_(root * space.projection)
        head.projection.bias.copy_(root * space.offset)
        head.centres.copy_(root * space.centres)
        head.none.fill_(none)
    found = _shares(known, unknown, counts, scale, none)
    logger.info("Kinds of images: %s", ", ".join(f"{name} {share:.3f}" for name, share in found.items()))
    return found


def fit_space(pooled: Tensor, group: Tensor, groups: Sequence[int]) -> Space:
    """The space in which the images of `groups` together have unit covariance about their centres.

    `pooled` (N, C), `group` (N,). It has the directions in which the images differ most.
    """
    rows = [pooled[group == number].double() for number in groups]
    centres = torch.stack([row.mean(dim=0) for row in rows])
    within = torch.stack([torch.cov(row.T) for row in rows]).mean(dim=0)
    within = torch.lerp(within, within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype), _SHRINKAGE)
    widest = torch.linalg.eigh(within + torch.cov(centres.T)).eigenvectors[:, -KIND_WIDTH:]
    values, axes = torch.linalg.eigh(widest.T @ within @ widest)
    projection = (widest @ (axes / values.sqrt())).T
    offset = -projection @ centres.mean(dim=0)
    return Space(projection.float(), offset.float(), (centres @ projection.T + offset).float())


class Judged(NamedTuple):
    """Distances (N, G) of held-out images, and which kind is right: (N,), or K where none is."""

    distances: Tensor
    right: Tensor


def calibrate(known: Judged, unknown: Judged, counts: Sequence[int]) -> tuple[float, float]:
    """The factor of distances and the logit of "none" that make probabilities right on what was held out.

    `counts` are the numbers of centres of the kinds. The best of a grid by cross-entropy: it is the same wherever it
    runs, and has an answer where all is told right.
    """
    reaches = torch.cat([judged.distances.amin(dim=1) for judged in (known, unknown)])
    best = (torch.inf, 1.0, 0.0)
    for scale in torch.logspace(-2.5, 0, 26).tolist():
        for reach in reaches.quantile(torch.linspace(0, 1, 41)).tolist():
            losses = [
                float(F.cross_entropy(_logits(judged, counts, scale, -scale * reach), judged.right))
                for judged in (known, unknown)
            ]
            best = min(best, (_KNOWN_WEIGHT * losses[0] + losses[1], scale, -scale * reach))
    return best[1:]


def _logits(judged: Judged, counts: Sequence[int], scale: float, none: float) -> Tensor:
    return kind_logits(scale * judged.distances, counts, torch.tensor(none))


def held_out_distances(seen: Seen, counts: Sequence[int]) -> tuple[Judged, Judged]:
    """Held-out images of known kinds, and of none: broken, synthetic, or of a kind that a space does not know.

    Each set is judged in the space of all sets, in the space of the others, and in that of other kinds. An image of a
    set that a space does not know tells how far those of another hospital may lie; it counts where another set is of
    its kind.
    """
    kinds, total = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), sum(counts)
    fitted = ~seen.held_out & (seen.group < total)

    def judged(shown: Tensor, groups: list[int]) -> Tensor:
        space = fit_space(seen.pooled[fitted], seen.group[fitted], groups)
        distances = torch.full((int(shown.sum()), total), torch.inf)
        distances[:, groups] = space.distances(seen.pooled[shown])
        return distances

    everything = list(range(total))
    own = seen.held_out & (seen.group < total)
    known = [(judged(own, everything), kinds[seen.group[own]])]
    unknown = [judged(seen.group == total, everything)]
    for kind, count in enumerate(counts):
        members = (kinds == kind).nonzero().flatten().tolist()
        for group in members if count > 1 else ():
            shown = seen.held_out & (seen.group == group)
            others = [other for other in everything if other != group]
            known.append((judged(shown, others), torch.full((int(shown.sum()),), kind)))
        if len(counts) > 2:
            shown = seen.held_out & torch.isin(seen.group, torch.tensor(members))
            unknown.append(judged(shown, [other for other in everything if other not in members]))
    none = torch.cat(unknown)
    return (
        Judged(*(torch.cat(values) for values in zip(*known, strict=True))),
        Judged(none, torch.full((len(none),), len(counts))),
    )


def _shares(known: Judged, unknown: Judged, counts: Sequence[int], scale: float, none: float) -> dict[str, float]:
    """Shares of held-out images that are told right, "known", and refused, "unknown"."""
    return {
        name: float((_logits(judged, counts, scale, none).argmax(dim=1) == judged.right).float().mean())
        for name, judged in (("known", known), ("unknown", unknown))
    }


@torch.no_grad()
def _look(model: KPrism, drawer: Drawer, images: int, progress: bool) -> Seen:
    """What the head sees of `images` images of each set, and of as many broken and synthetic ones."""
    device = next(model.parameters()).device
    parts: list[Seen] = []
    with tqdm(total=(len(drawer.sets) + 1) * images, desc="kinds", disable=not progress) as bar:
        for group, batch in drawer.batches(images):
            pooled = KindHead.pooled(model.encode_image(batch.to(device))).cpu()
            parts.append(Seen(pooled, torch.full((len(batch),), group), torch.zeros(len(batch), dtype=torch.bool)))
            bar.update(len(batch))
    seen = Seen(*(torch.cat(values) for values in zip(*parts, strict=True)))
    for group in range(len(drawer.sets)):
        rows = (seen.group == group).nonzero().flatten()
        seen.held_out[rows[::_HELD_OUT]] = True
    return seen


class Drawer:
    """Draws images (n, 3, size, size) from a store, changed at random."""

    def __init__(self, store: SliceStore, size: int, seed: int, augmentation: Augmentation) -> None:
        self.sets = sets_by_kind(store.sets)
        self._side, self._size, self._augmentation = store.size, size, augmentation
        self._rng = np.random.default_rng(seed)
        self._generator = Generator().manual_seed(seed)

    def batches(self, images: int) -> Iterator[tuple[int, Tensor]]:
        """Images of each of the G sets, ordered by kind, and of none, with the place of the set, G for none."""
        for start in range(0, images, _BATCH):
            count = min(_BATCH, images - start)
            for group, part in enumerate(self.sets):
                yield group, self.slices([part] * count)
            yield len(self.sets), self.nothing(count)

    def slices(self, parts: Sequence[SliceSet]) -> Tensor:
        """A slice of each set."""
        side = self._side
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
        chosen = self._rng.integers(len(self.sets), size=(count + 1) // 2)
        broken = break_images(self.slices([self.sets[number] for number in chosen]), self._generator)
        if count == 1:
            return broken
        return torch.cat([broken, synthetic_group(count // 2, self._size, self._generator)[0]])


def break_images(images: Tensor, generator: Generator) -> Tensor:
    """Images (n, 3, S, S) inverted and blurred, their sixteen parts in random order."""
    blurred = F.avg_pool2d(F.pad(1 - images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    side = images.shape[-1] // 4
    parts = F.unfold(blurred, side, stride=side)
    return F.fold(parts[:, :, torch.randperm(16, generator=generator)], images.shape[-2:], side, stride=side)
