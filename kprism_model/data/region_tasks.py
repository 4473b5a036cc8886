# SPDX-License-Identifier: Apache-2.0
"""Training tasks without labels: several views of one slice, with an object made of its own regions.

As in ScribblePrompt (arXiv 2312.07381), the object to click on is made of superpixels. Each view of the slice is a
reference for the others. Random tone curves, different in each view, prevent the network from finding the object by its
grey level alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from kprism_model.data.augment import Augmentation, augment_batch
from kprism_model.data.region_maps import RegionMaps, open_region_maps
from kprism_model.data.region_objects import ObjectSettings, draw_object
from kprism_model.data.slices import SliceStore
from kprism_model.data.targets import by_case, draw_slice

_SLICE_ATTEMPTS = 8  # slices that are tried for an object; then the views have an empty mask
_VIEW_ATTEMPTS = 3  # views that are tried; then one without geometric changes is used
_MINIMUM_VISIBLE_PIXELS = 16  # of the object in a view
_MAXIMUM_VISIBLE_SHARE = 0.9  # of the view that the object covers


@dataclass(frozen=True)
class RegionTasks:
    """Settings of the tasks."""

    tone: float = 0.5
    """Chance that a group's views get random tone curves."""
    individuality: float = 0.35
    """Weight of each view's own curve; the rest is the group's."""
    zoom: float = 2.5
    """`Augmentation.zoom` of the views."""
    objects: ObjectSettings = field(default_factory=ObjectSettings)

    def __post_init__(self) -> None:
        """Refuse chances and weights outside [0, 1], naming the field."""
        for name in ("tone", "individuality"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"RegionTasks.{name} must lie in [0, 1], got {getattr(self, name)}")


class RegionSampler:
    """Draws tasks from all slices of a store, labelled or not: a data set by weight, then a case, then a slice.

    `weights` by data set name, 1 by default. A slice's region map is computed when the slice is first drawn, and cached
    (see `kprism_model.data.region_maps`). ValueError if all weights are 0.
    """

    def __init__(
        self, store: SliceStore, weights: Mapping[str, float] | None = None, tasks: RegionTasks | None = None
    ) -> None:
        self.tasks = tasks or RegionTasks()
        shares = np.array([(weights or {}).get(slice_set.name, 1.0) * (len(slice_set) > 0) for slice_set in store.sets])
        if not shares.sum() > 0:
            raise ValueError(f"no data set of {[part.name for part in store.sets]} has slices and a weight above 0")
        self._shares = shares / shares.sum()
        self._sets = store.sets
        self._cases = [by_case(slice_set, np.arange(len(slice_set))) for slice_set in store.sets]
        self._maps: dict[str, RegionMaps] = open_region_maps(store)

    def group(
        self, count: int, size: int, generator: Generator, augmentation: Augmentation, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, str]:
        """`count` views of one object.

        Returns float32 images (count, 3, size, size) in [0, 1], masks (count, 1, size, size) of 0 and 1, and the name
        of the data set. Reproducible by `generator`, a CPU generator, and `rng`. The masks are empty if several slices
        in a row have no object.
        """
        for _ in range(_SLICE_ATTEMPTS):
            number = int(rng.choice(len(self._sets), p=self._shares))
            slice_set, row = self._sets[number], draw_slice(self._cases[number], rng)
            image = np.asarray(slice_set.images[row])
            mask = draw_object(image, self._maps[slice_set.name][row], rng, self.tasks.objects)
            if mask is not None:
                break
        else:
            mask = np.zeros(image.shape[:2], dtype=bool)
        images = self._toned(image, count, rng)
        settings = replace(augmentation, zoom=max(augmentation.zoom, self.tasks.zoom))
        return *_views(images, mask, slice_set.content[row], size, generator, settings), slice_set.name

    def _toned(self, image: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """`count` copies (count, S, S, C) of an image; by chance each one has its own tone curve."""
        if rng.random() >= self.tasks.tone:
            return np.repeat(image[None], count, axis=0)
        return np.stack([curve[image] for curve in tone_curves(count, rng, self.tasks.individuality)])


def tone_curves(count: int, rng: np.random.Generator, individuality: float) -> NDArray[np.uint8]:
    """Smooth curves from grey level to grey level, uint8 (count, 256), that share a common part.

    A curve is a mixture of a rising line and a curve through random levels, so bright tones may become dark, and middle
    tones the brightest. `individuality` is from 0 (all curves are equal) to 1 (nothing in common). Each curve uses the
    whole range of levels.
    """
    knots = int(rng.integers(3, 7))
    shared, own = rng.random((1, knots)), rng.random((count, knots))
    randomness = rng.uniform(0.3, 1.0)
    levels = randomness * ((1 - individuality) * shared + individuality * own)
    levels = levels + (1 - randomness) * np.linspace(0, 1, knots)
    places = np.linspace(0, knots - 1, 256)
    left = np.minimum(places.astype(int), knots - 2)
    weight = (1 - np.cos(np.pi * (places - left))) / 2  # no corners at the knots
    curves = (1 - weight) * levels[:, left] + weight * levels[:, left + 1]
    low, high = curves.min(axis=1, keepdims=True), curves.max(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = 255 * (curves - low) / np.maximum(high - low, 1e-6)
    return np.rint(scaled).astype(np.uint8)


def _views(
    images: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    content: NDArray[np.int64],
    size: int,
    generator: Generator,
    settings: Augmentation,
) -> tuple[Tensor, Tensor]:
    """The images (n, S, S, C) and the mask, each changed differently; a view that loses the object is drawn again."""
    count = len(images)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    masks = torch.from_numpy(mask).expand(count, 1, -1, -1)
    contents = torch.from_numpy(content).expand(count, -1)
    changed = torch.empty(count, 3, size, size)
    seen = torch.empty(count, 1, size, size)
    missing = torch.ones(count, dtype=torch.bool)
    for attempt in range(_VIEW_ATTEMPTS + 1):
        last = attempt == _VIEW_ATTEMPTS
        changed[missing], seen[missing] = augment_batch(
            pixels[missing],
            masks[missing],
            generator,
            size=size,
            content=contents[missing],
            settings=settings.without_geometry() if last else settings,
        )
        area = seen.sum(dim=(1, 2, 3))
        missing = (area < _MINIMUM_VISIBLE_PIXELS) | (area > _MAXIMUM_VISIBLE_SHARE * size * size)
        if not missing.any() or not mask.any():
            break
    return changed, seen
