# SPDX-License-Identifier: Apache-2.0
"""Which labelled images are most like a new one: cosine similarity of mean-pooled features of the image encoder.

The features are those that an image is segmented with, so that a description costs nothing where the image is encoded
already.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kprism_model.network.config import STRIDES
from kprism_model.queries import ImageEmbedding


def describe(embedding: ImageEmbedding) -> NDArray[np.float32]:
    """An image as a vector (D,): the mean of its stride-16 features over what is image and not padding."""
    features = embedding.features.stride16[0]
    rows, columns = (-(-side // STRIDES[0]) for side in embedding.geometry.resized)
    vector: NDArray[np.float32] = features[:, :rows, :columns].mean((1, 2)).float().cpu().numpy()
    return vector


@dataclass(frozen=True, eq=False)
class Candidates:
    """N images that may be retrieved: `vectors` (N, D) that describe them, the case and the patient of each.

    Raises ValueError where the three differ in length, or a vector is not finite.
    """

    vectors: NDArray[np.float32]
    cases: Sequence[Hashable]
    patients: Sequence[Hashable]

    def __post_init__(self) -> None:
        """Check that the three describe the same images."""
        if self.vectors.ndim != 2 or not len(self.vectors) == len(self.cases) == len(self.patients):
            raise ValueError(
                f"expected vectors (N, D) with N cases and patients, got shape {self.vectors.shape}, "
                f"{len(self.cases)} and {len(self.patients)}"
            )
        if not np.isfinite(self.vectors).all():
            raise ValueError("a vector that describes an image holds values that are not finite")

    def nearest(self, query: ArrayLike, count: int, *, patient: Hashable | None = None) -> list[int]:
        """The numbers of at most `count` candidates, most similar to the vector `query` (D,) first.

        Candidates of `patient` are left out, and of each case only the best is taken, because slices side by side tell
        little more than one of them. The mean of all candidates is subtracted before vectors are compared: what all
        images have in common tells nothing. Equally similar ones keep their order.
        """
        vector = np.asarray(query, dtype=np.float32)
        if vector.shape != self.vectors.shape[1:]:
            raise ValueError(f"the query has shape {vector.shape}, the candidates {self.vectors.shape[1:]}")
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
    """Vectors (..., D) at length 1; those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.where(lengths > 0, lengths, 1)
    return unit
