# SPDX-License-Identifier: Apache-2.0
"""Unlabelled objects: regions of a slice, merged, cut and smoothed until they look as if a person had outlined them.

ScribblePrompt (arXiv 2312.07381) trains on superpixels beside labelled structures. Here similar neighbouring
superpixels are merged. Vessels and membranes come from a ridge filter, because superpixels break thin structures.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED, bounding_box, largest_component
from kprism_model.data.ridges import ridges
from kprism_model.data.superpixels import neighbours
from kprism_model.data.targets import MINIMUM_PIXELS

Mask = NDArray[np.bool_]

_ATTEMPTS = 6
_CANDIDATES = 3  # objects of one kind; the most distinct one is used
_FLAT_DEVIATION = 2.5  # grey levels: a region at the image border that varies less is background
_BACKGROUND_MARGIN = 4  # pixels around the background whose edges are those of the field of view


@dataclass(frozen=True)
class ObjectSettings:
    """Weights of the kinds of objects, and limits of their size and shape."""

    region: float = 0.25
    """Weight of a single region; the other kinds: `merged` with neighbours, `thin`, a `fragment`, a `union`."""
    merged: float = 0.3
    thin: float = 0.15
    fragment: float = 0.1
    union: float = 0.2
    similarity: tuple[float, float] = (0.15, 0.6)
    """Range of the largest difference between similar regions, in standard deviations of the image."""
    maximum_merged: int = 12
    """Largest number of neighbours that are merged into an object."""
    maximum_union: int = 6
    """Largest number of regions in a union."""
    largest: float = 0.6
    """Largest share of the image that an object may cover."""
    thickness: float = 0.2
    """Smallest share of a region that an erosion by one pixel leaves; thin strips along edges leave less."""

    def __post_init__(self) -> None:
        """Refuse negative values and weights that are all zero, naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if np.min(value) < 0:
                raise ValueError(f"ObjectSettings.{field.name} must be 0 or more, got {value}")
        if not sum(self.weights()):
            raise ValueError("the weights of ObjectSettings must not all be 0")

    def weights(self) -> tuple[float, ...]:
        """The weights of region, merged, thin, fragment and union."""
        return self.region, self.merged, self.thin, self.fragment, self.union


def draw_object(
    image: NDArray[np.uint8],
    regions: NDArray[np.uint16],
    rng: np.random.Generator,
    settings: ObjectSettings | None = None,
) -> Mask | None:
    """A random object in a slice.

    image: uint8 (S, S, C). regions: uint16 (S, S) from `region_map`. Returns bool (S, S) with at least `MINIMUM_PIXELS`
    pixels and at most the share `settings.largest` of the image; None if several attempts give no such object, as in an
    empty slice.
    """
    settings = settings or ObjectSettings()
    rows, columns = (int(np.count_nonzero(line)) for line in (regions[:, 0], regions[0]))
    inner, numbers = image[:rows, :columns], regions[:rows, :columns].astype(np.int32) - 1
    parts = _SliceRegions(inner, numbers, rng, settings)
    if parts.all_flat:
        return None
    weights = np.array(settings.weights())
    kinds = (parts.region, parts.merged, parts.thin, parts.fragment, parts.union)
    for _ in range(_ATTEMPTS):
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        candidates = [kind() for _ in range(_CANDIDATES)]
        fit = [mask for mask in candidates if MINIMUM_PIXELS <= np.count_nonzero(mask) <= settings.largest * mask.size]
        if fit:
            canvas = np.zeros(regions.shape, dtype=bool)
            canvas[:rows, :columns] = max(fit, key=parts.distinctness)
            return canvas
    return None


class _SliceRegions:
    """The regions of one slice without padding: their features, their neighbours, and random objects made of them."""

    def __init__(
        self, image: NDArray[np.uint8], regions: NDArray[np.int32], rng: np.random.Generator, settings: ObjectSettings
    ) -> None:
        self._grey = image.mean(axis=2, dtype=np.float32)
        self._image, self._regions, self._rng, self._settings = image, regions, rng, settings
        self._sizes = np.bincount(regions.ravel())
        self._features = _features(image, regions, self._sizes)
        first, second = (regions.ravel()[ends] for ends in neighbours(*regions.shape))
        pairs = np.stack([first, second], axis=1)[first != second].astype(np.int64)
        keys = np.unique(np.concatenate([pairs, pairs[:, ::-1]]) @ [len(self._sizes), 1])
        self._beside = keys % len(self._sizes)
        self._starts = np.searchsorted(keys, np.arange(len(self._sizes) + 1) * len(self._sizes))
        border = np.concatenate([regions[[0, -1]].ravel(), regions[:, [0, -1]].ravel()])
        self._on_border = np.bincount(border, minlength=len(self._sizes)) / len(border)
        self._background = (self._on_border > 0) & (self._features[:, -1] < _FLAT_DEVIATION)
        self._near_background = ndimage.maximum_filter(self._background[regions], 2 * _BACKGROUND_MARGIN + 1)
        self._clarity = _clarity(self._grey)
        self._clarity[self._near_background] = 0
        self._chances = self._seed_chances()

    @property
    def all_flat(self) -> bool:
        """Whether all regions are background."""
        return bool(self._background.all())

    def region(self) -> Mask:
        """One region with a smoothed outline."""
        return self._cleaned([self._seed()])

    def merged(self) -> Mask:
        """A region with its neighbours and their neighbours, as long as they are similar."""
        number, limit = self._seed(), self._limit()
        members = [number]
        beside = set(self._neighbours(number))
        for _ in range(self._rng.integers(1, self._settings.maximum_merged + 1)):
            if not beside:
                break
            choices = np.array(sorted(beside))
            differences = self._differences(members[0], choices)
            nearest = int(differences.argmin())
            if differences[nearest] > limit:
                break
            members.append(int(choices[nearest]))
            beside = (beside | set(self._neighbours(members[-1]))) - set(members)
        return self._cleaned(members)

    def thin(self) -> Mask:
        """One ridge, or all ridges, in one channel of the image: vessels, membranes, fibres."""
        channel = self._image[..., self._rng.integers(self._image.shape[2])].astype(np.float32)
        lines: Mask = ridges(channel, self._rng) & ~self._near_background
        components, count = ndimage.label(lines, EIGHT_CONNECTED)
        if count < 2 or self._rng.random() < 0.6:
            return lines
        sizes = np.bincount(components.ravel())[1:]
        one: Mask = components == 1 + self._rng.choice(count, p=sizes / sizes.sum())
        return one

    def fragment(self) -> Mask:
        """The part of an object on one side of a straight cut."""
        mask = self.merged() if self._rng.random() < 0.5 else self.region()
        positions = np.argwhere(mask)
        if not len(positions):
            return mask
        angle = self._rng.uniform(0, 2 * np.pi)
        along = positions @ np.array([np.sin(angle), np.cos(angle)])
        cut = along < np.quantile(along, self._rng.uniform(0.3, 0.8))
        part = np.zeros_like(mask)
        part[tuple(positions[cut].T)] = True
        return largest_component(part)

    def union(self) -> Mask:
        """Similar regions that do not touch, such as two lungs or some nuclei."""
        number = self._seed()
        mask = self._cleaned([number])
        others = np.setdiff1d(np.flatnonzero(~self._background), [number, *self._neighbours(number)])
        ratio = np.abs(np.log(self._sizes[others] / self._sizes[number]))
        others = others[(self._differences(number, others) < self._limit()) & (ratio < np.log(2.5))]
        order = others[np.argsort(self._differences(number, others), kind="stable")]
        count = int(self._rng.integers(1, self._settings.maximum_union))
        for other in order[:count]:
            mask |= self._cleaned([int(other)])
        return mask if len(order) else np.zeros_like(mask)

    def distinctness(self, mask: Mask) -> float:
        """A score that is high for an object with a clear outline that is short for its area."""
        box = _box(mask)
        outline = mask[box] & ~ndimage.binary_erosion(mask[box])
        length = np.count_nonzero(outline)
        return float(self._clarity[box][outline].mean() * np.count_nonzero(mask) ** 0.25 / length**0.5)

    def _seed(self) -> int:
        return int(self._rng.choice(len(self._chances), p=self._chances))

    def _seed_chances(self) -> NDArray[np.float64]:
        """(n,) the chance of each region: higher for large regions, zero for the background."""
        chances = self._sizes**0.8 * np.exp(-20 * self._on_border) * ~self._background
        normalised: NDArray[np.float64] = chances / max(chances.sum(), 1e-300)
        return normalised

    def _limit(self) -> float:
        """A random limit of the difference between similar regions."""
        return float(self._rng.uniform(*self._settings.similarity) * self._grey.std())

    def _neighbours(self, number: int) -> list[int]:
        """The neighbours of a region that are not background."""
        beside = self._beside[self._starts[number] : self._starts[number + 1]]
        numbers: list[int] = beside[~self._background[beside]].tolist()
        return numbers

    def _differences(self, number: int, others: NDArray[np.int64]) -> NDArray[np.float64]:
        differences: NDArray[np.float64] = np.linalg.norm(self._features[others] - self._features[number], axis=1)
        return differences

    def _cleaned(self, members: list[int]) -> Mask:
        """The union of regions as a person would outline it: one smooth piece, small holes filled; or empty."""
        chosen = np.zeros(len(self._sizes), dtype=bool)
        chosen[members] = True
        mask = chosen[self._regions]
        area = np.count_nonzero(mask)
        sigma = min(0.7 + self._rng.uniform(0, 0.05) * np.sqrt(area), 4.0)
        box = _box(mask)
        piece = ndimage.gaussian_filter(mask[box].astype(np.float32), sigma, mode="nearest", truncate=3) > 0.5
        result = np.zeros_like(mask)
        piece = largest_component(_small_holes_filled(piece))
        if np.count_nonzero(ndimage.binary_erosion(piece)) >= self._settings.thickness * np.count_nonzero(piece):
            result[box] = piece
        return result


def _features(image: NDArray[np.uint8], regions: NDArray[np.int32], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 2) or (n, 4) features of regions: the mean of each channel and the standard deviation, in grey levels."""
    flat = regions.ravel()
    channels = image.reshape(len(flat), -1).T.astype(np.float64)
    means = np.stack([np.bincount(flat, channel) / sizes for channel in channels])
    squares = np.stack([np.bincount(flat, channel**2) / sizes for channel in channels])
    deviation = np.sqrt(np.maximum(squares - means**2, 0).mean(axis=0))
    # Means are scaled so that a grey image has the same distances with one channel and with three.
    features: NDArray[np.float64] = np.concatenate([means / np.sqrt(len(channels)), deviation[None]]).T
    return features


def _clarity(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) the clarity of edges at each pixel, from 0 to 1; a tenth of the pixels have 1."""
    slope = np.hypot(*np.gradient(ndimage.uniform_filter(grey, 3, mode="nearest")))
    clarity: NDArray[np.float32] = np.minimum(slope / max(float(np.quantile(slope, 0.9)), 1e-3), 1)
    return clarity


def _box(mask: Mask) -> tuple[slice, ...]:
    """The box of a mask that is not empty, with a margin of one pixel."""
    box = bounding_box(mask, margin=1)
    assert box is not None
    return box


def _small_holes_filled(mask: Mask) -> Mask:
    """The mask with its small holes filled; holes of a fifth of the mask or more stay, as in a ring."""
    filled: Mask = ndimage.binary_fill_holes(mask)
    return filled if np.count_nonzero(filled) < 1.2 * np.count_nonzero(mask) else mask
