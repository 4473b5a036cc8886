# SPDX-License-Identifier: Apache-2.0
"""References for an evaluation, drawn by seed from the training list of the same data set, from other patients."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from kprism_model.data import Dataset, LoadedCase, load_case
from kprism_model.predictor import Predictor
from kprism_model.references import References
from kprism_model.sampling import MINIMUM_PIXELS

ReferenceDraws = dict[int, list[dict[int, References]]]
"""References by their number, then draw, then label index of the class."""

_Picture = tuple[NDArray[np.float32], NDArray[np.bool_]]


def draw_references(
    predictor: Predictor,
    dataset: Dataset,
    counts: Sequence[int],
    draws: int,
    seed: int,
    excluded_patients: Collection[str],
    notes: list[str],
) -> ReferenceDraws:
    """Draw and encode references for each class: `draws` sets of max(`counts`), of which smaller counts take the first.

    Each reference is of another case, and of a volume one slice is taken, uniformly among those with at least
    `MINIMUM_PIXELS` pixels of the class. A class that too few cases show is left out of that count; `notes` says so.
    """
    pool = _Pool(dataset, excluded_patients)
    result: ReferenceDraws = {count: [{} for _ in range(draws)] for count in sorted(counts)}
    for index, name in dataset.classes.items():
        for draw in range(draws):
            pictures = pool.draw(index, max(counts), np.random.default_rng([seed, draw, index]))
            if pictures:
                encoded = predictor.embed_references(*(list(part) for part in zip(*pictures, strict=True)))
            for count in result:
                if len(pictures) >= count:
                    result[count][draw][index] = _first(encoded, count)
        for count in result:
            if index not in result[count][0]:
                notes.append(
                    f"{dataset.name}: no in-context figures of {name} with {count} reference(s), "
                    f"only {len(pictures)} training cases of other patients show it"
                )
    return result


class _Pool:
    """The training cases that may serve as references; read when first drawn, then kept."""

    def __init__(self, dataset: Dataset, excluded_patients: Collection[str]) -> None:
        self._dataset = dataset
        self._cases = [
            case
            for case in dataset.cases("training")
            if case.label is not None and case.patient not in excluded_patients
        ]
        self._loaded: dict[str, LoadedCase] = {}

    def draw(self, index: int, count: int, rng: np.random.Generator) -> list[_Picture]:
        """Up to `count` pictures of different cases that show the class, in drawn order."""
        pictures: list[_Picture] = []
        for number in rng.permutation(len(self._cases)):
            loaded = self._load(int(number))
            assert loaded.labels is not None
            masks = loaded.labels == index
            shown = np.flatnonzero(masks.sum((1, 2)) >= MINIMUM_PIXELS)
            if len(shown):
                chosen = int(rng.choice(shown))
                pictures.append((loaded.images[chosen], masks[chosen]))
            if len(pictures) == count:
                break
        return pictures

    def _load(self, number: int) -> LoadedCase:
        case = self._cases[number]
        if case.name not in self._loaded:
            self._loaded[case.name] = load_case(self._dataset, case)
        return self._loaded[case.name]


def _first(references: References, count: int) -> References:
    """The first `count` of R references."""
    return References(
        tuple(summary[:, :count] for summary in references.summaries),  # type: ignore[arg-type]
        references.keys[:, :count],
        references.values[:, :count],
    )
