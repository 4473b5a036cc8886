# SPDX-License-Identifier: Apache-2.0
"""The encoded slices of one volume, and all passes through the network about them: batched, locked, counted, kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.network.references import References
from kprism_model.predictor import Prediction, Predictor, merge_classes, predict_batch
from kprism_model.queries import Click, ImageEmbedding, Query
from kprism_model.store import Store, cached, size_of
from kprism_model.window import Window
from kprism_model.windowed import answer_in_windows

TOGETHER = 8
"""Slices that are asked about in one pass."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Question:
    """One structure asked for on slice `number`; `prior`: how probably it can be there. The rest as in `Query`."""

    number: int
    class_name: str | None = None
    references: References | None = None
    clicks: tuple[Click, ...] = ()
    scribbles: NDArray[np.int8] | None = None
    previous_mask: NDArray[np.float32] | None = None
    prior: float = 1.0


class SliceFeatures:
    """Slices (slice, row, column) in [0, 1], or with three channels behind that, and what the network makes of them.

    `scope` is the part of every key in `store` that names the slices and the weights. `lock` is held during each pass.
    `encoded` and `decoded` count slices (and windows of slices) encoded and rows decoded.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: NDArray[np.float32],
        store: Store,
        scope: tuple[str, ...],
        lock: AbstractContextManager[object],
    ) -> None:
        self.images = images
        self.encoded = 0
        self.decoded = 0
        self._predictor = predictor
        self._store = store
        self._scope = scope
        self._lock = lock

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.images.shape[1], self.images.shape[2]

    def __len__(self) -> int:
        return len(self.images)

    def cached(self, kind: str, key: str, compute: Callable[[], T]) -> T:
        """What the store has of `kind` under `key`; computed and kept if it has none."""
        return cached(self._store, (*self._scope, kind, key), compute)

    def kept(self, kind: str, key: str) -> bool:
        """Whether the store has something of `kind` under `key` now."""
        return self._store.get((*self._scope, kind, key)) is not None

    def embed(self, numbers: Sequence[int]) -> list[ImageEmbedding]:
        """Encoded slices, in the order of `numbers`; those that are not kept are encoded.

        Each alone: in batches the last bits would depend on the company, and so on what was asked before; and batches
        save next to no time on a CPU.
        """
        found = {number: self.embed_window(number, Window.whole(self.size)) for number in dict.fromkeys(numbers)}
        return [found[number] for number in numbers]

    def embed_window(self, number: int, window: Window) -> ImageEmbedding:
        """A window of a slice, encoded if it is not kept."""
        key = (*self._scope, "features", number, window)
        kept: ImageEmbedding | None = self._store.get(key)
        return self._encode(number, window, key) if kept is None else kept

    def _encode(self, number: int, window: Window, key: tuple[object, ...]) -> ImageEmbedding:
        with self._lock:
            # While this request waited for the device, another one may have encoded the slice.
            kept: ImageEmbedding | None = self._store.get(key)
            if kept is None:
                [kept] = self._predictor.embed([np.ascontiguousarray(window.crop(self.images[number]))])
                self.encoded += 1
                self._store.put(key, kept, size_of(kept))
        return kept

    def answer(self, questions: Sequence[Question], *, minimum_presence: float | None = None) -> list[Prediction]:
        """Answers in order; see `predict_batch` for `minimum_presence`."""
        numbers = list(dict.fromkeys(question.number for question in questions))
        embeddings = dict(zip(numbers, self.embed(numbers), strict=True))
        queries = [
            Query(embeddings[q.number], q.class_name, q.references, q.clicks, q.scribbles, q.previous_mask)
            for q in questions
        ]
        return self._ask(queries, minimum_presence)

    def correct(self, question: Question) -> Prediction:
        """The answer to a question with clicks or scribbles, in a window of the slice where one is worth it."""
        native = self._predictor.model.config.native_size
        [answer] = answer_in_windows(
            [question], [self.size], native, lambda _, window: self.embed_window(question.number, window), self._ask
        )
        return answer

    def _ask(self, queries: Sequence[Query], minimum_presence: float | None = None) -> list[Prediction]:
        with self._lock:
            self.decoded += len(queries)
            return predict_batch(self._predictor, queries, minimum_presence=minimum_presence)

    def reference(self, number: int, mask: NDArray[np.bool_]) -> References:
        """A slice with a mask that is not empty, as a reference; the features of the slice are not computed again."""
        [embedding] = self.embed([number])
        with self._lock:
            return self._predictor.embed_reference(embedding, self.images[number], mask)


def search(
    features: SliceFeatures, asked: Mapping[str, Question], slices: range, minimum_presence: float
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every question of `asked` about each slice: the slice's number, and its index map in the order of `asked`.

    Questions of a fixed group of slices share passes, so that no answer depends on `slices`. One that is less probable
    than `minimum_presence` stops at the coarsest scale. Presence given that a structure can be there, times the prior
    of that, is its presence; the rest as in `merge_classes`.
    """
    names = list(asked)
    for start in range(slices.start - slices.start % TOGETHER, slices.stop, TOGETHER):
        group = range(start, min(start + TOGETHER, len(features)))
        questions = [replace(question, number=number) for number in group for question in asked.values()]
        answers = iter(features.answer(questions, minimum_presence=minimum_presence))
        for number in group:
            found = {name: _weighed(next(answers), question.prior) for name, question in asked.items()}
            if number in slices:
                yield number, merge_classes(found, names, presence_threshold=minimum_presence)


def _weighed(prediction: Prediction, prior: float) -> Prediction:
    return replace(prediction, presence=prediction.presence * prior)
