# SPDX-License-Identifier: Apache-2.0
"""The encoded slices of one volume, and all passes through the network for it: batched, locked, counted and cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.intensity import Slices
from kprism_model.network.references import References
from kprism_model.predictor import THRESHOLD, Prediction, Predictor, merge_classes, predict_batch
from kprism_model.preprocess import Pixels
from kprism_model.queries import Click, ImageEmbedding, Query
from kprism_model.store import Store, cached, size_of
from kprism_model.volumes.adaptation import AdaptationRules, Offsets, fit_offsets
from kprism_model.volumes.data import window_of
from kprism_model.volumes.patches import Patch
from kprism_model.window import Window
from kprism_model.windowed import ObjectPrompts, crop_query, merged_probability, predict_in_windows

SLICES_PER_BATCH = 8
"""Slices that are predicted in one pass."""

ANCHOR_STEPS = (4, 2, 1)
"""Every so many slices one is searched first; these divide `SLICES_PER_BATCH`."""

ANCHOR_DISTANCE = 5.0
"""The greatest distance in mm between two slices that are searched first."""

CLEARLY_ABSENT = 0.5
"""A structure is clearly absent if its presence is below this share of the least one, or no pixel is plausible."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SliceQuery:
    """A query for one structure on slice `number`.

    `prior` is the probability that it can be there. Only `window` of the slice is looked at; by default all of it. The
    rest is as in `Query`.
    """

    number: int
    class_name: str | None = None
    references: References | None = None
    clicks: tuple[Click, ...] = ()
    scribbles: NDArray[np.int8] | None = None
    previous_mask: NDArray[Any] | Patch | None = None
    prior: float = 1.0
    window: Window | None = None


_Found = dict[int, dict[str, Prediction]]
"""The predictions of a slice by name."""


class SliceFeatures:
    """Slices (slice, row, column) or (slice, row, column, 3) in [0, 1], and the network's results for them.

    `scope` is the part of every key in `store` that identifies the slices and the weights. `lock` is held during each
    pass. `encoded` and `decoded` count encoded slices (and windows of slices) and decoded rows.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: Slices,
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
    def native_size(self) -> int:
        """The long side of the network's canvas in pixels."""
        return self._predictor.model.config.native_size

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.images.shape[1], self.images.shape[2]

    def __len__(self) -> int:
        return len(self.images)

    def cached(self, kind: str, key: str, compute: Callable[[], T]) -> T:
        """The stored result of `kind` under `key`; computed and stored if there is none."""
        return cached(self._store, (*self._scope, kind, key), compute)

    def kept(self, kind: str, key: str) -> bool:
        """Whether the store holds a result of `kind` under `key` now."""
        return self._store.get((*self._scope, kind, key)) is not None

    def embed(self, numbers: Sequence[int]) -> list[ImageEmbedding]:
        """Encoded slices, in the order of `numbers`; slices that are not in the store are encoded.

        They are encoded one by one. In a batch the last bits of a result depend on the other slices, and so on earlier
        requests; and on a CPU batches save almost no time.
        """
        embeddings = {number: self.embed_window(number, Window.whole(self.size)) for number in dict.fromkeys(numbers)}
        return [embeddings[number] for number in numbers]

    def embed_window(self, number: int, window: Window) -> ImageEmbedding:
        """A window of a slice, encoded if it is not in the store."""
        key = (*self._scope, "features", number, window)
        kept: ImageEmbedding | None = self._store.get(key)
        return self._encode(number, window, key) if kept is None else kept

    def _encode(self, number: int, window: Window, key: tuple[object, ...]) -> ImageEmbedding:
        pixels = self._pixels(number, window)  # may have to be fetched, which must not keep others from the device
        with self._lock:
            # While this request waited for the device, another one may have encoded the slice.
            kept: ImageEmbedding | None = self._store.get(key)
            if kept is None:
                [kept] = self._predictor.embed([pixels])
                self.encoded += 1
                self._store.put(key, kept, size_of(kept))
        return kept

    def _pixels(self, number: int, window: Window) -> NDArray[np.float32] | Pixels:
        """A window of a slice in [0, 1]."""
        return window_of(self.images, number, window.box)

    def predict(self, queries: Sequence[SliceQuery], *, minimum_presence: float | None = None) -> list[Prediction]:
        """Predictions in the order of `queries`, at the slices' size and empty outside of the queries' windows.

        See `predict_batch` for `minimum_presence`.
        """
        windows = [query.window or Window.whole(self.size) for query in queries]
        parts = dict.fromkeys((query.number, window) for query, window in zip(queries, windows, strict=True))
        embeddings = {part: self.embed_window(*part) for part in parts}
        crops = [
            crop_query(query, window, embeddings[query.number, window])
            for query, window in zip(queries, windows, strict=True)
        ]
        predictions = self._predict_batch(crops, minimum_presence)
        return [_pasted(prediction, window) for prediction, window in zip(predictions, windows, strict=True)]

    def correct(self, query: SliceQuery, before: Patch | None) -> Patch:
        """The mask of a query with clicks or scribbles on the mask `before`, in a window where that shows more."""

        def paste(query: ObjectPrompts, window: Window, prediction: Prediction) -> Patch:
            probability = merged_probability(query, window, prediction)
            return (before or Patch.empty(self.size)).replaced(window, probability)

        [patch] = predict_in_windows(
            [replace(query, previous_mask=before)],
            [self.size],
            self.native_size,
            lambda _, window: self.embed_window(query.number, window),
            self._predict_batch,
            paste,
        )
        return patch

    def _predict_batch(self, queries: Sequence[Query], minimum_presence: float | None = None) -> list[Prediction]:
        self.decoded += len(queries)
        return predict_batch(self._predictor, queries, minimum_presence=minimum_presence, lock=self._lock)

    def reference(self, number: int, mask: NDArray[np.bool_], window: Window | None = None) -> References:
        """A window of a slice (default: all of it) with the slice's mask, which is not empty there, as a reference.

        The window's features are not computed again.
        """
        window = window or Window.whole(self.size)
        embedding, pixels = self.embed_window(number, window), self._pixels(number, window)
        with self._lock:
            return self._predictor.embed_reference(embedding, pixels, window.crop(mask))

    def adapt(
        self,
        reference: References,
        number: int,
        mask: NDArray[np.bool_],
        window: Window,
        rules: AdaptationRules,
        on_step: Callable[[], object],
    ) -> Offsets:
        """Offsets that adapt `reference`, a window of a slice with the slice's mask; see `fit_offsets`."""
        image, structure = np.asarray(self._pixels(number, window)), window.crop(mask)
        return fit_offsets(self._predictor, reference, image, structure, rules, self._lock, on_step)


def search_step(spacing: float) -> int:
    """Which slices are searched first: every n-th one, at most `ANCHOR_DISTANCE` apart. `spacing` of slices in mm."""
    return next(step for step in ANCHOR_STEPS if step == 1 or step * spacing <= ANCHOR_DISTANCE)


def segment_slices(
    features: SliceFeatures, queries: Mapping[str, SliceQuery], slices: range, minimum_presence: float, step: int = 1
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Predict all `queries` on each slice; yields the slice's number and its index map, in the order of `queries`.

    A structure that is less probable than `minimum_presence` stops at the coarsest scale. Its presence is multiplied by
    the query's prior; the rest is as in `merge_classes`. Every `step`-th slice is an anchor (see `search_step`) and is
    searched for all structures. A slice between two anchors is searched for those that are not clearly absent on both,
    and is not even encoded if there are none.

    Fixed groups of slices share a pass, and which structures are searched follows from the anchors alone. So no result
    depends on `slices`. Slices come in order, each as soon as its group is done.
    """
    names = list(queries)
    anchors: _Found = {}
    for start in range(slices.start - slices.start % SLICES_PER_BATCH, slices.stop, SLICES_PER_BATCH):
        group, after = (
            range(first, min(first + SLICES_PER_BATCH, len(features))) for first in (start, start + SLICES_PER_BATCH)
        )
        anchors = {number: found for number, found in anchors.items() if number >= start}
        for numbers in (group[::step], after[::step] if step > 1 else range(0)):
            if numbers and numbers[0] not in anchors:
                anchors |= _search(features, dict.fromkeys(numbers, queries), minimum_presence)
        between = {
            number: _left(queries, [anchors[end] for end in _ends(number, step) if end in anchors], minimum_presence)
            for number in group
            if number % step
        }
        found = anchors | _search(features, between, minimum_presence)
        for number in group:
            if number not in slices:
                continue
            if found[number]:
                yield number, merge_classes(found[number], names, presence_threshold=minimum_presence)
            else:
                yield number, np.zeros(features.size, np.uint8)


def _search(
    features: SliceFeatures, queries: Mapping[int, Mapping[str, SliceQuery]], minimum_presence: float
) -> _Found:
    """The predictions for the named queries of each slice, all in one group."""
    on_slices = [replace(query, number=number) for number, named in queries.items() for query in named.values()]
    predictions = iter(features.predict(on_slices, minimum_presence=minimum_presence))
    return {
        number: {name: _with_prior(next(predictions), query.prior) for name, query in named.items()}
        for number, named in queries.items()
    }


def _ends(number: int, step: int) -> tuple[int, int]:
    """The anchors before and after a slice; the second may be beyond the last slice."""
    return number - number % step, number - number % step + step


def _left(
    queries: Mapping[str, SliceQuery], anchors: Sequence[Mapping[str, Prediction]], minimum_presence: float
) -> dict[str, SliceQuery]:
    """The queries that are not clearly absent on all `anchors`."""
    return {
        name: query
        for name, query in queries.items()
        if not all(_clearly_absent(found[name], minimum_presence) for found in anchors)
    }


def _clearly_absent(prediction: Prediction, minimum_presence: float) -> bool:
    """Whether a structure is far from being found: by its presence, or because it has no plausible pixel."""
    if prediction.presence < minimum_presence:
        return prediction.presence < CLEARLY_ABSENT * minimum_presence
    return not prediction.probability.any()


def _pasted(prediction: Prediction, window: Window) -> Prediction:
    """A prediction in a window as one for the whole slice."""
    if window.is_whole:
        return prediction
    probability = window.paste(prediction.probability)
    return Prediction(probability >= THRESHOLD, probability, prediction.presence)


def _with_prior(prediction: Prediction, prior: float) -> Prediction:
    return replace(prediction, presence=prediction.presence * prior)
