# SPDX-License-Identifier: Apache-2.0
"""Structures of many instances, such as nuclei: which they are, and the instances that are clicked one by one.

A person clicks on one nucleus to get that nucleus, not all fifty. Label maps hold classes and no instances, so an
instance is a connected component; instances that touch are one.
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
from kprism_model.evaluation.protocol import Target

INSTANCES_PER_IMAGE = 4
"""At most so many instances of a class are clicked in one image."""

_CASES_LOOKED_AT = 20


@dataclass(frozen=True)
class InstanceSampling:
    """Draws the instances that are clicked of the classes `indices`, by `seed`, at most `most` of each in one image."""

    indices: Collection[int]
    seed: int
    most: int = INSTANCES_PER_IMAGE

    def clicked(self, targets: Sequence[Target]) -> list[Target]:
        """What is clicked, each by itself: some instances of structures of many instances, others as they are.

        What is drawn depends on the seed, the case, the slice and the class alone.
        """
        return [one for target in targets for one in (self._draw(target) if target.index in self.indices else [target])]

    def _draw(self, target: Target) -> list[Target]:
        components, areas = _components(target.mask)
        large = 1 + np.flatnonzero(areas >= MINIMUM_PIXELS)
        case = zlib.crc32(target.part.case.encode())
        rng = np.random.default_rng([self.seed, case, target.part.number, target.index])
        chosen = np.sort(rng.permutation(large)[: self.most])
        return [replace(target, mask=components == number) for number in chosen]


def instance_classes(dataset: Dataset) -> dict[int, str]:
    """The classes of many instances, by label index.

    The median image or slice that shows such a class holds at least `MANY_INSTANCES` components of at least
    `MINIMUM_PIXELS` pixels, the largest with at most `LARGEST_SHARE` of the class's pixels. The training list decides
    (all lists where it has no labels), so that the answer is one for all lists: at most 20 cases of it, always the
    same.
    """
    shown: dict[int, list[tuple[int, float]]] = {index: [] for index in dataset.classes}
    for case in _looked_at(dataset):
        labels = load_case(dataset, case).labels
        assert labels is not None  # only labelled cases are looked at
        for index, values in shown.items():
            masks = labels == index
            values += [_count_and_share(mask) for mask in masks if mask.sum() >= MINIMUM_PIXELS]
    medians = {index: np.median(values, axis=0) for index, values in shown.items() if values}
    return {
        index: dataset.classes[index]
        for index, (count, share) in medians.items()
        if count >= MANY_INSTANCES and share <= LARGEST_SHARE
    }


def _looked_at(dataset: Dataset) -> list[Case]:
    lists = [[case for case in dataset.cases(split) if case.label is not None] for split in SPLITS]
    labelled = lists[0] or [case for cases in lists for case in cases]
    chosen = np.random.default_rng(0).permutation(len(labelled))[:_CASES_LOOKED_AT]
    return [labelled[number] for number in chosen]


def _count_and_share(mask: NDArray[np.bool_]) -> tuple[int, float]:
    """The number of components that are large enough, and the largest one's share of the pixels."""
    _, areas = _components(mask)
    return int((areas >= MINIMUM_PIXELS).sum()), float(areas.max() / areas.sum())


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """8-connected components, numbered from 1, and their areas in pixels."""
    components, _ = ndimage.label(mask, EIGHT_CONNECTED)
    return components, np.bincount(components.ravel())[1:]
