# SPDX-License-Identifier: Apache-2.0
"""What the steps of the published training look at: each step is a function of the seed and its number alone.

The images of a step are numbered places of one batch. A process makes the places that fall to it, so what is trained on
does not depend on the number of processes, on who makes the batches, or on where a training was resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kprism_model.classes import ClassRegistry
from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.published.sets import SAME_PATIENTS, published_sets
from kprism_model.published.training.augmentation import Draw
from kprism_model.published.training.batch import RawBatch
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.published.training.slice_index import SliceIndex
from kprism_model.training.schedule import MODES

IN_CONTEXT = "in_context"


class Place(NamedTuple):
    """One image of a batch: its data set, row and class there, how it is changed; and the same of its reference.

    `column` counts the classes of the data set.
    """

    set_number: int
    row: int
    column: int
    draw: Draw
    reference: tuple[int, Draw] | None


def sampling_weights(names: Sequence[str], given: Mapping[str, float]) -> dict[str, float]:
    """The weight of each slice of each of the data sets `names`: from `given`, else the published one.

    ValueError for a set that the published training has not and that `given` does not name, for a name in `given` that
    is no set, and for a weight that is not above 0.
    """
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"--weight names {', '.join(unknown)}, but the data sets are {', '.join(names)}")
    if set(SAME_PATIENTS) <= set(names):
        raise ValueError(f"{' and '.join(SAME_PATIENTS)} have 210 patients in common: train on one of them")
    weights = {}
    for name in names:
        known = published_sets().get(name)
        if name not in given and (known is None or known.role != "trained"):
            what = "is not a set of the published experiment" if known is None else f"is only measured ({known.role})"
            raise ValueError(
                f"data set {name} {what}: leave it out, or give the weight of its slices, --weight {name}=W"
            )
        weights[name] = given[name] if name in given else published_sets()[name].weight
        if not 0 < weights[name] < np.inf:
            raise ValueError(f"--weight {name}={weights[name]}: expected a number above 0")
    return weights


class PublishedSampler:
    """Draws the places of a step: a set by the weights of its slices, a slice, a class that it shows, a reference.

    `weights` are those of a slice, by data set: a set is drawn with weight x slices. `slices` counts the slices that
    show a class. ValueError if the slices have another size than the recipe, if no slice shows a class, or if
    in-context images are drawn and no class is shown by two patients.
    """

    def __init__(
        self,
        store: SliceStore,
        recipe: PublishedRecipe,
        weights: Mapping[str, float],
        *,
        seed: int,
        registry: ClassRegistry | None = None,
    ) -> None:
        if store.size != recipe.size:
            raise ValueError(f"{store.path} holds slices of {store.size} pixels, the training needs {recipe.size}")
        self.recipe, self.seed = recipe, seed
        self.registry = registry or ClassRegistry(store.class_names)
        self.sets = [SliceIndex(slice_set) for slice_set in store.sets]
        self._values = [list(part.slice_set.classes) for part in self.sets]
        self._class_rows = [[self.registry.index(name) for name in s.classes.values()] for s in store.sets]
        self.slices = sum(part.count(with_reference=False) for part in self.sets)
        if not self.slices:
            raise ValueError(f"no slice in {store.path} shows a class")
        each = [weights[part.slice_set.name] for part in self.sets]
        self._shares = {paired: self._cumulated(each, paired) for paired in (False, True)}
        if self._shares[True] is None and recipe.mode_shares[MODES.index(IN_CONTEXT)] > 0:
            raise ValueError(f"{store.path} has no class that two patients show, so there are no references")

    def shares(self, with_reference: bool = False) -> dict[str, float]:
        """The chance of each data set."""
        cumulated = self._shares[with_reference]
        each = np.zeros(len(self.sets)) if cumulated is None else np.diff(cumulated, prepend=0)
        return {part.slice_set.name: float(share) for part, share in zip(self.sets, each, strict=True)}

    def contents(self) -> dict[str, str]:
        """What each data set is drawn from, in words and as a digest of its cases, patients and slices."""
        return {part.slice_set.name: _content(part.slice_set) for part in self.sets}

    def mode(self, step: int) -> str:
        """The mode of a step, the same for all its places."""
        chosen = np.searchsorted(np.cumsum(self.recipe.mode_shares), self._rng(step).random(), side="right")
        return MODES[min(int(chosen), len(MODES) - 1)]

    def place(self, step: int, number: int) -> Place:
        """The image `number` of a step."""
        rng = self._rng(step, number)
        paired = self.mode(step) == IN_CONTEXT
        cumulated = self._shares[paired]
        assert cumulated is not None  # the constructor has refused such a mode
        chosen = min(int(np.searchsorted(cumulated, rng.random(), side="right")), len(self.sets) - 1)
        index = self.sets[chosen]
        row, column = index.draw(rng, paired)
        draw = Draw.random(rng)
        reference = (index.draw_reference(row, column, rng), Draw.random(rng)) if paired else None
        return Place(chosen, row, column, draw, reference)

    def batch(self, step: int, numbers: Sequence[int]) -> RawBatch:
        """The images `numbers` of a step, as they are stored."""
        places = [self.place(step, number) for number in numbers]
        looks = [(place, place.row, place.draw) for place in places]
        looks += [(place, *place.reference) for place in places if place.reference is not None]
        size = self.recipe.size
        images = np.empty((len(looks), 3, size, size), dtype=np.uint8)
        masks = np.empty((len(looks), 1, size, size), dtype=np.uint8)
        content = np.empty((len(looks), 2), dtype=np.int64)
        for number, (place, row, _) in enumerate(looks):
            slice_set = self.sets[place.set_number].slice_set
            images[number] = slice_set.images[row].transpose(2, 0, 1)
            masks[number, 0] = _mask(slice_set, row, self._values[place.set_number][place.column])
            content[number] = slice_set.content[row]
        index = [self._class_rows[place.set_number][place.column] for place in places]
        return RawBatch(
            self.mode(step),
            torch.from_numpy(images),
            torch.from_numpy(masks),
            torch.tensor(index),
            torch.from_numpy(content),
            tuple(draw for _, _, draw in looks),
        )

    def _rng(self, *numbers: int) -> np.random.Generator:
        # The length tells the generator of a step from those of its places: zeros at the end of a seed do not count.
        return np.random.default_rng([self.seed, len(numbers), *numbers])

    def _cumulated(self, weights: Sequence[float], with_reference: bool) -> NDArray[np.float64] | None:
        each = np.array(weights) * [part.count(with_reference) for part in self.sets]
        return np.cumsum(each) / each.sum() if each.sum() > 0 else None


def _content(slice_set: SliceSet) -> str:
    digest = hashlib.sha256(json.dumps([slice_set.case_names, slice_set.patients]).encode())
    for column in (slice_set.case, slice_set.number, slice_set.content, slice_set.pixels):
        digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    return f"{len(slice_set)} slices of {len(slice_set.case_names)} cases, {digest.hexdigest()[:12]}"


def _mask(slice_set: SliceSet, row: int, value: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = slice_set.labels[row] == value
    return mask
