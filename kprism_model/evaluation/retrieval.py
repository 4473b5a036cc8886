# SPDX-License-Identifier: Apache-2.0
"""Retrieval of the labelled images that are most similar to a query, by cosine similarity of encoder features.

The features are the same that the image is segmented with, so a description costs nothing if the image is already
encoded.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kprism_model.network.config import STRIDES
from kprism_model.queries import ImageEmbedding


def describe(embedding: ImageEmbedding) -> NDArray[np.float32]:
    """An image as a vector (D,): the mean of its stride-16 features without padding."""
    features = embedding.features.stride16[0]
    rows, columns = (-(-side // STRIDES[0]) for side in embedding.geometry.resized)
    vector: NDArray[np.float32] = features[:, :rows, :columns].mean((1, 2)).float().cpu().numpy()
    return vector


@dataclass(frozen=True, eq=False)
class Candidates:
    """N images to retrieve from: their `vectors` (N, D), and the case and the patient of each.

    ValueError if the three differ in length, or a vector is not finite.
    """

    vectors: NDArray[np.float32]
    cases: Sequence[Hashable]
    patients: Sequence[Hashable]

    def __post_init__(self) -> None:
        """Check the lengths and the values."""
        if self.vectors.ndim != 2 or not len(self.vectors) == len(self.cases) == len(self.patients):
            raise ValueError(
                f"expected vectors (N, D) with N cases and patients, got shape {self.vectors.shape}, "
                f"{len(self.cases)} and {len(self.patients)}"
            )
        if not np.isfinite(self.vectors).all():
            raise ValueError("a vector that describes an image holds values that are not finite")

    def nearest(self, query: ArrayLike, count: int, *, patient: Hashable | None = None) -> list[int]:
        """The numbers of at most `count` candidates, the most similar to the vector `query` (D,) first.

        Candidates of `patient` are left out. Each case gives only its best slice, because neighbouring slices say
        little more than one of them. The mean of all candidates is subtracted before vectors are compared, because
        what all images share says nothing. Equally similar candidates keep their order.
        """
        vector = np.asarray(query, dtype=np.float32)
        if vector.shape != self.vectors.shape[1:]:
            raise ValueError(
                f"the query has shape {vector.shape}, but the candidates have shape {self.vectors.shape[1:]}"
            )
        chosen: list[int] = []
        cases: set[Hashable] = set()
        for number in np.argsort(-self._similarity(vector), kind="stable").tolist():
            if len(chosen) == count:
                break
            if (patient is None or self.patients[number] != patient) and self.cases[number] not in cases:
                cases.add(self.cases[number])
                chosen.append(number)
        return chosen

    def _similarity(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        if not len(self.vectors):
            return np.zeros(0, np.float32)
        centre = self.vectors.mean(0)
        similarity: NDArray[np.float32] = _unit(self.vectors - centre) @ _unit(query - centre)
        return similarity


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (..., D) scaled to length 1; vectors of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.where(lengths > 0, lengths, 1)
    return unit
