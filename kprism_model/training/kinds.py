# SPDX-License-Identifier: Apache-2.0
"""Fitting the kind head to the features of a network: it takes a minute, and changes no other output of the network.

Augmented images of every data set are encoded once. The centre of a data set is its mean, and distances are measured in
the space in which all sets together have unit covariance (Mahalanobis distance, Lee et al., arXiv 1807.03888). The
confidence of the head is calibrated on images that were not used: each set is left out in turn, and counts as a known
kind if another set is of the same kind, otherwise as none; synthetic and shuffled images count as none.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kprism_model.classes import ClassRegistry
from kprism_model.data.augment import Augmentation
from kprism_model.data.kinds import kind_name, kind_names, possible_kinds
from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kinds import KIND_WIDTH, KindHead, kind_logits
from kprism_model.network.kprism import KPrism
from kprism_model.progress import progress_bar
from kprism_model.training.kind_images import BATCH_SIZE, KindImages

logger = logging.getLogger(__name__)

IMAGES = 64
"""Images of each set that the head is fitted to, and as many of no kind."""

_SHRINKAGE = 0.1  # of the covariance towards a multiple of the unit matrix
_HELD_OUT_EVERY = 4  # this image of each set is used for calibration
_KNOWN_WEIGHT = 200.0  # rejecting a known kind loses all its structures; presence still checks what is accepted


class KindFeatures(NamedTuple):
    """Inputs of the head for N images: `pooled` (N, C), `group` (N,) and `held_out` (N,) bool.

    A group is the index of a set among G that are ordered by kind, or G for images of no kind.
    """

    pooled: Tensor
    group: Tensor
    held_out: Tensor


class Space(NamedTuple):
    """Where distances are measured: `projection` (W, C) and `offset` (W,); `centres` (G, W)."""

    projection: Tensor
    offset: Tensor
    centres: Tensor

    def distances(self, pooled: Tensor) -> Tensor:
        """Half the squared distances of images (N, C) to the centres: (N, G)."""
        projected = pooled @ self.projection.T + self.offset
        return 0.5 * torch.cdist(projected, self.centres).square()


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
    """Set in the kind head of `model` which classes can be in which kinds of images, by the metadata of the sets.

    Classes that no set has can be in all kinds.
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

    Returns the accuracy on held-out images: "known" on known kinds, and "unknown" on synthetic and shuffled images and
    on sets that were left out. ValueError if the store has other kinds of images, or other numbers of sets of a kind,
    than the network.
    """
    if model.kind_head is None or config_with_kinds(model.config, store.sets) != model.config:
        raise ValueError(f"the network knows the kinds {list(model.config.kinds)}, not {list(kind_names(store.sets))}")
    source = KindImages(store, model.config.native_size, seed, augmentation or Augmentation())
    features = _collect(model.eval(), source, images, progress)
    counts = model.kind_head.counts
    known, unknown = held_out_distances(features, counts)
    scale, none = calibrate(known, unknown, counts)
    labelled = features.group < sum(counts)
    space = fit_space(features.pooled[labelled], features.group[labelled], range(sum(counts)))
    head, root = model.kind_head, scale**0.5
    with torch.no_grad():
        head.projection.weight.copy_(root * space.projection)
        head.projection.bias.copy_(root * space.offset)
        head.centres.copy_(root * space.centres)
        head.none.fill_(none)
    accuracy = _accuracy(known, unknown, counts, scale, none)
    logger.info("Kinds of images: %s", ", ".join(f"{name} {share:.3f}" for name, share in accuracy.items()))
    return accuracy


def fit_space(pooled: Tensor, group: Tensor, groups: Sequence[int]) -> Space:
    """The space in which the images of `groups` together have unit covariance around their centres.

    `pooled` (N, C), `group` (N,). Its directions are those in which the images differ most.
    """
    rows = [pooled[group == number].double() for number in groups]
    centres = torch.stack([row.mean(dim=0) for row in rows])
    within = torch.stack([torch.cov(row.T) for row in rows]).mean(dim=0)
    within = torch.lerp(within, within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype), _SHRINKAGE)
    between = torch.cov(centres.T, correction=min(1, len(centres) - 1))  # of a single centre 0, not NaN
    widest = torch.linalg.eigh(within + between).eigenvectors[:, -KIND_WIDTH:]
    values, axes = torch.linalg.eigh(widest.T @ within @ widest)
    projection = (widest @ (axes / values.sqrt())).T
    offset = -projection @ centres.mean(dim=0)
    return Space(projection.float(), offset.float(), (centres @ projection.T + offset).float())


class HeldOut(NamedTuple):
    """Distances (N, G) of held-out images, and their true kinds (N,), K for none."""

    distances: Tensor
    true_kind: Tensor


def calibrate(known: HeldOut, unknown: HeldOut, counts: Sequence[int]) -> tuple[float, float]:
    """The factor of distances and the logit of "none" with the least cross-entropy on held-out images.

    `counts` are the numbers of centres of the kinds. The best of a grid: it is the same on every machine, and exists
    even where every image is classified correctly.
    """
    reaches = torch.cat([part.distances.amin(dim=1) for part in (known, unknown)])
    best = (torch.inf, 1.0, 0.0)
    for scale in torch.logspace(-2.5, 0, 26).tolist():
        for reach in reaches.quantile(torch.linspace(0, 1, 41)).tolist():
            losses = [
                float(F.cross_entropy(_logits(part, counts, scale, -scale * reach), part.true_kind))
                for part in (known, unknown)
            ]
            best = min(best, (_KNOWN_WEIGHT * losses[0] + losses[1], scale, -scale * reach))
    return best[1:]


def _logits(part: HeldOut, counts: Sequence[int], scale: float, none: float) -> Tensor:
    return kind_logits(scale * part.distances, counts, torch.tensor(none))


def held_out_distances(features: KindFeatures, counts: Sequence[int]) -> tuple[HeldOut, HeldOut]:
    """Held-out images of known kinds, and of none: shuffled, synthetic, or of a kind without a centre in a space.

    Distances of each set are measured in the space of all sets, in that of all others, and in that of all other kinds.
    A set that is left out shows how far images of another hospital can lie from the centres; it counts as known if
    another set is of its kind.
    """
    kinds, total = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), sum(counts)
    fitted = ~features.held_out & (features.group < total)

    def distances_of(images: Tensor, groups: list[int]) -> Tensor:
        space = fit_space(features.pooled[fitted], features.group[fitted], groups)
        distances = torch.full((int(images.sum()), total), torch.inf)
        distances[:, groups] = space.distances(features.pooled[images])
        return distances

    everything = list(range(total))
    own = features.held_out & (features.group < total)
    known = [(distances_of(own, everything), kinds[features.group[own]])]
    unknown = [distances_of(features.group == total, everything)]
    for kind, count in enumerate(counts):
        members = (kinds == kind).nonzero().flatten().tolist()
        for group in members if count > 1 else ():
            images = features.held_out & (features.group == group)
            others = [other for other in everything if other != group]
            known.append((distances_of(images, others), torch.full((int(images.sum()),), kind)))
        if len(counts) > 2:
            images = features.held_out & torch.isin(features.group, torch.tensor(members))
            unknown.append(distances_of(images, [other for other in everything if other not in members]))
    none = torch.cat(unknown)
    return (
        HeldOut(*(torch.cat(values) for values in zip(*known, strict=True))),
        HeldOut(none, torch.full((len(none),), len(counts))),
    )


def _accuracy(known: HeldOut, unknown: HeldOut, counts: Sequence[int], scale: float, none: float) -> dict[str, float]:
    """Shares of held-out images whose kind is recognized, "known", or that are rejected, "unknown"."""
    return {
        name: float((_logits(part, counts, scale, none).argmax(dim=1) == part.true_kind).float().mean())
        for name, part in (("known", known), ("unknown", unknown))
    }


@torch.no_grad()
def _collect(model: KPrism, source: KindImages, images: int, progress: bool) -> KindFeatures:
    """The inputs of the head for `images` images of each set, and as many of no kind."""
    device = next(model.parameters()).device
    parts: list[KindFeatures] = []
    passes = (len(source.sets) + 1) * math.ceil(images / BATCH_SIZE)
    for group, batch in progress_bar(source.batches(images), "kinds", shown=progress, total=passes):
        pooled = KindHead.pooled(model.encode_image(batch.to(device))).cpu()
        parts.append(KindFeatures(pooled, torch.full((len(batch),), group), torch.zeros(len(batch), dtype=torch.bool)))
    features = KindFeatures(*(torch.cat(values) for values in zip(*parts, strict=True)))
    for group in range(len(source.sets)):
        rows = (features.group == group).nonzero().flatten()
        features.held_out[rows[::_HELD_OUT_EVERY]] = True
    return features
