# SPDX-License-Identifier: Apache-2.0
"""References for an evaluation, from the training list of the same data set and from other patients.

They are drawn by seed, or retrieved as the training images that are most similar to the query.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.datasets import Dataset, LoadedCase, load_case
from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.evaluation.retrieval import Candidates, describe
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.queries import ImageEmbedding, join_references

RETRIEVAL_CANDIDATES = 512
"""References are retrieved from at most this many training images or slices of a data set."""

ReferenceDraws = dict[int, list[dict[int, References]]]
"""Number of references -> draw -> label index of the class -> encoded references."""

Picture = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""An image and its mask, (row, column)."""

_ENCODER_BATCH = 8
_CACHED_REFERENCES = 256  # encoded references that later queries can use again


class ReferencePool:
    """The training cases of a data set that can be references for the test patients."""

    def __init__(self, dataset: Dataset, excluded_patients: Collection[str]) -> None:
        self.dataset = dataset
        self._cases = [
            case
            for case in dataset.cases("training")
            if case.label is not None and case.patient not in excluded_patients
        ]
        self._loaded: dict[int, LoadedCase] = {}

    def draw(
        self, predictor: Predictor, counts: Sequence[int], draws: int, seed: int, notes: list[str]
    ) -> ReferenceDraws:
        """For each class, `draws` encoded sets of max(`counts`) references; smaller counts take the first of each set.

        All references of a set are from different cases. From a volume one slice is drawn, uniformly among those with
        at least `MINIMUM_PIXELS` pixels of the class. If too few cases show a class, it is left out of that count, and
        a sentence is added to `notes`.
        """
        result: ReferenceDraws = {count: [{} for _ in range(draws)] for count in sorted(counts)}
        for index, name in self.dataset.classes.items():
            for draw in range(draws):
                pictures = self.pictures(index, max(counts), seed, draw)
                if pictures:
                    images, masks = zip(*pictures, strict=True)
                    encoded = predictor.embed_references(images, masks)
                for count in result:
                    if len(pictures) >= count:
                        result[count][draw][index] = _first(encoded, count)
            for count in result:
                if index not in result[count][0]:
                    notes.append(
                        f"{self.dataset.name}: no in-context figures of {name} with {count} reference(s), "
                        f"only {len(pictures)} training cases of other patients show it"
                    )
        return result

    def candidates(self, predictor: Predictor, seed: int) -> RetrievedReferences:
        """The images to retrieve references from: at most `RETRIEVAL_CANDIDATES` slices, drawn by `seed`.

        All cases give about the same number of slices, from those with at least `MINIMUM_PIXELS` pixels of a class.
        """
        rng = np.random.default_rng([seed, RETRIEVAL_CANDIDATES])
        order = [
            (position, number, int(slice_number))
            for number in range(len(self._cases))
            for position, slice_number in enumerate(rng.permutation(self._labelled_slices(number)))
        ]
        places = [(number, slice_number) for _, number, slice_number in sorted(order)[:RETRIEVAL_CANDIDATES]]
        images = [self._load(number).images[slice_number] for number, slice_number in places]
        vectors = [
            describe(embedding)
            for start in range(0, len(images), _ENCODER_BATCH)
            for embedding in predictor.embed(images[start : start + _ENCODER_BATCH])
        ]
        pictures = [
            _Candidate(self._cases[number].name, self._cases[number].patient, image, self._labels(number)[slice_number])
            for (number, slice_number), image in zip(places, images, strict=True)
        ]
        return RetrievedReferences(predictor, pictures, vectors)

    def pictures(self, index: int, count: int, seed: int, draw: int) -> list[Picture]:
        """Up to `count` pictures of different cases that show class `index`, in the order of the draw."""
        rng = np.random.default_rng([seed, draw, index])
        pictures: list[Picture] = []
        for number in rng.permutation(len(self._cases)).tolist():
            masks = self._labels(number) == index
            shown = np.flatnonzero(masks.sum((1, 2)) >= MINIMUM_PIXELS)
            if len(shown):
                chosen = int(rng.choice(shown))
                pictures.append((self._load(number).images[chosen], masks[chosen]))
            if len(pictures) == count:
                break
        return pictures

    def _labelled_slices(self, number: int) -> NDArray[np.int64]:
        labels = self._labels(number)
        areas = np.stack([(labels == index).sum((1, 2)) for index in self.dataset.classes])
        return np.flatnonzero(areas.max(0) >= MINIMUM_PIXELS)

    def _labels(self, number: int) -> NDArray[np.uint8]:
        labels = self._load(number).labels
        assert labels is not None  # cases without labels are left out
        return labels

    def _load(self, number: int) -> LoadedCase:
        if number not in self._loaded:
            self._loaded[number] = load_case(self.dataset, self._cases[number])
        return self._loaded[number]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A training image with its label map, (row, column)."""

    case: str
    patient: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


class RetrievedReferences:
    """Finds the references that are most similar to a query, for one class."""

    def __init__(
        self, predictor: Predictor, pictures: Sequence[_Candidate], vectors: Sequence[NDArray[np.float32]]
    ) -> None:
        self._predictor = predictor
        self._pictures = pictures
        self._vectors = vectors
        self._by_class: dict[int, tuple[list[int], Candidates]] = {}
        self._encode = lru_cache(maxsize=_CACHED_REFERENCES)(self._encode_one)

    def find(self, embedding: ImageEmbedding, index: int, count: int, patient: str) -> References | None:
        """The `count` most similar images of other patients that show class `index`, best first; None if too few."""
        numbers, candidates = self._candidates(index)
        chosen = candidates.nearest(describe(embedding), count, patient=patient) if numbers else []
        if len(chosen) < count:
            return None
        return join_references([self._encode(numbers[row], index) for row in chosen])

    def _candidates(self, index: int) -> tuple[list[int], Candidates]:
        """The numbers of the pictures that show the class, and these pictures as `Candidates`."""
        if index not in self._by_class:
            areas = [int((picture.labels == index).sum()) for picture in self._pictures]
            numbers = [number for number, area in enumerate(areas) if area >= MINIMUM_PIXELS]
            width = len(self._vectors[0]) if self._vectors else 0
            vectors = np.array([self._vectors[number] for number in numbers], np.float32).reshape(len(numbers), width)
            cases = [self._pictures[number].case for number in numbers]
            patients = [self._pictures[number].patient for number in numbers]
            self._by_class[index] = numbers, Candidates(vectors, cases, patients)
        return self._by_class[index]

    def _encode_one(self, number: int, index: int) -> References:
        picture = self._pictures[number]
        return self._predictor.embed_references([picture.image], [picture.labels == index])


def _first(references: References, count: int) -> References:
    """The first `count` of R references."""
    return References(
        tuple(summary[:, :count] for summary in references.summaries),  # type: ignore[arg-type]
        references.keys[:, :count],
        references.values[:, :count],
    )
