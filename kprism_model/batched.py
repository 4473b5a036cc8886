# SPDX-License-Identifier: Apache-2.0
"""Many questions to a predictor at once: any image, any kinds of knowledge, decoded in batches."""

from __future__ import annotations

from collections.abc import Sequence

from kprism_model.predictor import Prediction, Predictor
from kprism_model.queries import Query, batches

__all__ = ["Query", "predict_batch"]


def predict_batch(
    predictor: Predictor, queries: Sequence[Query], *, batch: int = 16, minimum_presence: float | None = None
) -> list[Prediction]:
    """The answers that `Predictor.predict` gives to each query, in order, `batch` rows of one kind a pass.

    With `minimum_presence`, an object that is less probable to be in its image stops at the coarsest scale, which is
    much faster, and has an empty mask.
    """
    answers: dict[int, Prediction] = {}
    for rows in batches(queries, batch):
        found = predictor.answer([queries[row] for row in rows], minimum_presence=minimum_presence)
        answers.update(zip(rows, found, strict=True))
    return [answers[row] for row in range(len(queries))]
