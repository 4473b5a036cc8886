# SPDX-License-Identifier: Apache-2.0
"""Folds of cross-validation that keep each patient in one, and one image that occurs twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def groups(keys: Sequence[Sequence[str]]) -> list[int]:
    """A number from 1 for each case; cases that share a key, such as a patient or the content of an image, have one."""
    parent = list(range(len(keys)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    first: dict[str, int] = {}
    for number, own in enumerate(keys):
        for key in own:
            one, other = root(number), root(first.setdefault(key, number))
            parent[max(one, other)] = min(one, other)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(number), len(numbers) + 1) for number in range(len(keys))]


def folds_of(owners: Sequence[int], count: int, seed: int) -> list[int]:
    """The fold (0, 1, ...) of each case, at most `count` folds and one for each of the `owners` if there are fewer.

    The owners are shuffled, and each goes to the fold with the fewest cases so far, those with many cases first.
    """
    cases = Counter(owners)
    shuffled = np.random.default_rng(seed).permutation(sorted(cases)).tolist()
    sizes = [0] * min(count, len(cases))
    fold: dict[int, int] = {}
    for owner in sorted(shuffled, key=lambda one: -cases[one]):
        fold[owner] = sizes.index(min(sizes))
        sizes[fold[owner]] += cases[owner]
    return [fold[owner] for owner in owners]


def splits(names: Sequence[str], folds: Sequence[int]) -> list[dict[str, list[str]]]:
    """nnU-Net's list of splits: the names to train on and those to validate with, for each fold; none for one fold."""
    if max(folds, default=0) == 0:
        return []
    pairs = list(zip(names, folds, strict=True))
    return [
        {
            "train": [name for name, other in pairs if other != fold],
            "val": [name for name, other in pairs if other == fold],
        }
        for fold in range(max(folds) + 1)
    ]
