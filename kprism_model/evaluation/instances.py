# SPDX-License-Identifier: Apache-2.0
"""Structures of many instances, such as nuclei: which they are, and the instances that are clicked one by one.

A person clicks on one nucleus to get that nucleus, not all fifty. Label maps hold classes, not instances. So an
instance is a connected component, and instances that touch count as one.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED
from kprism_model.data.datasets import SPLITS, Case, Dataset, load_case
from kprism_model.data.targets import LARGEST_SHARE, MANY_INSTANCES, MINIMUM_PIXELS
from kprism_model.evaluation.scores import Target

INSTANCES_PER_IMAGE = 4
"""At most this many instances of a class are clicked in one image."""

_CASES_SAMPLED = 20


@dataclass(frozen=True)
class InstanceSampling:
    """Draws instances of the classes `indices` to click on, by `seed`: at most `maximum_per_image` of a class."""

    indices: Collection[int]
    seed: int
    maximum_per_image: int = INSTANCES_PER_IMAGE

    def clicked(self, targets: Sequence[Target]) -> list[Target]:
        """The objects to click on: drawn instances for structures of many instances, other targets unchanged.

        The draw depends on the seed, the case, the slice and the class alone.
        """
        objects: list[Target] = []
        for target in targets:
            objects += self._draw(target) if target.index in self.indices else [target]
        return objects

    def _draw(self, target: Target) -> list[Target]:
        components, areas = _components(target.mask)
        large = 1 + np.flatnonzero(areas >= MINIMUM_PIXELS)
        case = zlib.crc32(target.image_slice.case.encode())
        rng = np.random.default_rng([self.seed, case, target.image_slice.number, target.index])
        chosen = np.sort(rng.permutation(large)[: self.maximum_per_image])
        return [replace(target, mask=components == number) for number in chosen]


def instance_classes(dataset: Dataset) -> dict[int, str]:
    """The classes of many instances, by label index.

    In the median image or slice that shows such a class, it has at least `MANY_INSTANCES` components of at least
    `MINIMUM_PIXELS` pixels, and the largest has at most `LARGEST_SHARE` of the class's pixels. Up to 20 cases of the
    training list decide, always the same ones (of all lists if it has no labels). So the result is the same for all
    lists.
    """
    shown: dict[int, list[tuple[int, float]]] = {index: [] for index in dataset.classes}
    for case in _sampled_cases(dataset):
        labels = load_case(dataset, case).labels
        assert labels is not None  # only labelled cases are sampled
        for index, values in shown.items():
            masks = labels == index
            values += [_count_and_share(mask) for mask in masks if mask.sum() >= MINIMUM_PIXELS]
    medians = {index: np.median(values, axis=0) for index, values in shown.items() if values}
    return {
        index: dataset.classes[index]
        for index, (count, share) in medians.items()
        if count >= MANY_INSTANCES and share <= LARGEST_SHARE
    }


def _sampled_cases(dataset: Dataset) -> list[Case]:
    lists = [[case for case in dataset.cases(split) if case.label is not None] for split in SPLITS]
    labelled = lists[0] or [case for cases in lists for case in cases]
    chosen = np.random.default_rng(0).permutation(len(labelled))[:_CASES_SAMPLED]
    return [labelled[number] for number in chosen]


def _count_and_share(mask: NDArray[np.bool_]) -> tuple[int, float]:
    """The number of components that are large enough, and the largest one's share of the pixels."""
    _, areas = _components(mask)
    return int((areas >= MINIMUM_PIXELS).sum()), float(areas.max() / areas.sum())


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """8-connected components, numbered from 1, and their areas in pixels."""
    components, _ = ndimage.label(mask, EIGHT_CONNECTED)
    return components, np.bincount(components.ravel())[1:]
