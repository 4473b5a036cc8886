# SPDX-License-Identifier: Apache-2.0
"""Training tasks that need no label: one slice, seen in different ways, with an object made of its own regions.

After ScribblePrompt (arXiv 2312.07381): what the annotator clicks on is made of superpixels. Each view of the slice is
a reference for the others. Random tone curves, different in each view, keep the tone alone from telling where the
object is.
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

_SLICES = 8  # that are tried for an object before views of an empty one are given
_VIEWS = 3  # that are tried before one is given without changes of geometry
_SEEN = (16, 0.9)  # fewest pixels of the object in a view, and its largest share of the view


@dataclass(frozen=True)
class RegionTasks:
    """How the tasks vary."""

    tone: float = 0.5
    """Chance that a group's views get random tone curves."""
    individuality: float = 0.35
    """Weight of each view's own curve beside the group's."""
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

    `weights` by data set name; those not named weigh 1. A slice's region map is computed when it is first drawn, and
    kept (see `kprism_model.data.region_maps`). ValueError if all weights are 0.
    """

    def __init__(
        self, store: SliceStore, weights: Mapping[str, float] | None = None, tasks: RegionTasks | None = None
    ) -> None:
        self.tasks = tasks or RegionTasks()
        shares = np.array([(weights or {}).get(part.name, 1.0) * (len(part) > 0) for part in store.sets])
        if not shares.sum() > 0:
            raise ValueError(f"no data set of {[part.name for part in store.sets]} has slices and a weight above 0")
        self._shares = shares / shares.sum()
        self._parts = store.sets
        self._cases = [by_case(part, np.arange(len(part))) for part in store.sets]
        self._maps: dict[str, RegionMaps] = open_region_maps(store)

    def group(
        self, count: int, size: int, generator: Generator, augmentation: Augmentation, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, str]:
        """`count` views of one object.

        Returns float32 images (count, 3, size, size) in [0, 1], masks (count, 1, size, size) of 0 and 1, and the name
        of the data set. Reproducible by `generator`, a CPU generator, and `rng`. The masks are empty where some slices
        showed no object at all.
        """
        for _ in range(_SLICES):
            number = int(rng.choice(len(self._parts), p=self._shares))
            part, row = self._parts[number], draw_slice(self._cases[number], rng)
            image = np.asarray(part.images[row])
            mask = draw_object(image, self._maps[part.name][row], rng, self.tasks.objects)
            if mask is not None:
                break
        else:
            mask = np.zeros(image.shape[:2], dtype=bool)
        images = self._toned(image, count, rng)
        settings = replace(augmentation, zoom=max(augmentation.zoom, self.tasks.zoom))
        return *_views(images, mask, part.content[row], size, generator, settings), part.name

    def _toned(self, image: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """`count` copies (count, S, S, C) of an image, by chance each with a tone curve of its own."""
        if rng.random() >= self.tasks.tone:
            return np.repeat(image[None], count, axis=0)
        return np.stack([curve[image] for curve in tone_curves(count, rng, self.tasks.individuality)])


def tone_curves(count: int, rng: np.random.Generator, individuality: float) -> NDArray[np.uint8]:
    """Smooth curves from grey level to grey level, uint8 (count, 256), alike by a common part.

    A curve lies between a rising line and one through random levels at a few places, so that bright may become dark and
    middle tones the brightest. `individuality` from 0 (all the same) to 1 (nothing in common). Each uses the whole
    range of levels.
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
    """The images (n, S, S, C) and the mask under a change of its own each; a view that loses the object is redrawn."""
    count = len(images)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    masks = torch.from_numpy(mask).expand(count, 1, -1, -1)
    contents = torch.from_numpy(content).expand(count, -1)
    changed = torch.empty(count, 3, size, size)
    seen = torch.empty(count, 1, size, size)
    wanting = torch.ones(count, dtype=torch.bool)
    for attempt in range(_VIEWS + 1):
        last = attempt == _VIEWS
        changed[wanting], seen[wanting] = augment_batch(
            pixels[wanting],
            masks[wanting],
            generator,
            size=size,
            content=contents[wanting],
            settings=settings.without_geometry() if last else settings,
        )
        area = seen.sum(dim=(1, 2, 3))
        wanting = (area < _SEEN[0]) | (area > _SEEN[1] * size * size)
        if not wanting.any() or not mask.any():
            break
    return changed, seen
