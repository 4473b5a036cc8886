# SPDX-License-Identifier: Apache-2.0
"""Predictions in windows: corrections are made close to the structure, at a resolution at which it can be seen.

The first prediction is made on the whole image. Later ones (see `choose_window`) are made in a window, and again in a
wider one as long as the window's sides cut off the predicted mask. If there is a previous mask, only the connected
component that is prompted changes (after the "progressive merge" of FocalClick, arXiv 2204.02574). The result depends
on the image and the query alone. Predictions on the whole image are returned as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.components import EIGHT_CONNECTED, components_touching
from kprism_model.network.references import References
from kprism_model.predictor import THRESHOLD, Prediction, Predictor, predict_batch
from kprism_model.queries import ImageEmbedding, Query
from kprism_model.store import Store, cached
from kprism_model.window import Box, Size, SparseMask, SpatialPrompts, Window, WindowRules, choose_window

T = TypeVar("T")

RULES = WindowRules()
"""The rules of all predictions, chosen on validation lists."""

PROMPT_REACH = 1 / 64
"""A change belongs to a click within this share of the window's long side: three pixels of a canvas of 192."""


class ObjectPrompts(SpatialPrompts, Protocol):
    """A query without its image: the fields that `Query` and `SliceQuery` share."""

    @property
    def class_name(self) -> str | None:
        """A class that the network knows."""

    @property
    def references(self) -> References | None:
        """Encoded references."""


def predict_in_windows(
    queries: Sequence[ObjectPrompts],
    sizes: Sequence[Size],
    native: int,
    embed: Callable[[int, Window], ImageEmbedding],
    predict: Callable[[Sequence[Query]], Sequence[Prediction]],
    paste: Callable[[ObjectPrompts, Window, Prediction], T],
    rules: WindowRules = RULES,
) -> list[T]:
    """One prediction for each query, in order; `paste` makes it of the prediction in a window (`paste_prediction`).

    `sizes` are the images' (rows, columns); `native` is the long side of the network's canvas. `embed` takes the number
    of a query and a window of its image and returns the encoded window. It is called for the same windows again and
    again, so it should cache what it encodes. `predict` is `predict_batch`.
    """
    windows = {number: choose_window(sizes[number], native, query, rules) for number, query in enumerate(queries)}
    predicted_boxes: dict[int, Box | None] = {}
    predictions: dict[int, T] = {}
    while windows:
        crops = [crop_query(queries[number], window, embed(number, window)) for number, window in windows.items()]
        for (number, window), prediction in zip(list(windows.items()), predict(crops), strict=True):
            if window.cuts(prediction.mask):
                box = Box.around(prediction.mask)
                box = None if box is None else box.moved(window.top, window.left)
                predicted_boxes[number] = box if box is None else box.joined(predicted_boxes.get(number))
                windows[number] = choose_window(
                    sizes[number],
                    native,
                    queries[number],
                    rules,
                    predicted=predicted_boxes[number],
                    wider_than=window.longest,
                )
            else:
                del windows[number]
                predictions[number] = paste(queries[number], window, prediction)
    return [predictions[number] for number in range(len(queries))]


def predict_batch_in_windows(
    predictor: Predictor, images: Mapping[int, NDArray[np.float32]], store: Store, queries: Sequence[Query]
) -> list[Prediction]:
    """`predict_batch`, in windows.

    `images` maps the `id` of an embedding to its image. The embeddings must live as long as `store`, which caches the
    encoded windows.
    """

    def embed(number: int, window: Window) -> ImageEmbedding:
        embedding = queries[number].embedding
        if window.is_whole:
            return embedding
        crop = np.ascontiguousarray(window.crop(images[id(embedding)]))
        return cached(store, (id(embedding), window), lambda: predictor.embed([crop])[0])

    sizes = [query.embedding.geometry.size for query in queries]
    native = predictor.model.config.native_size
    return predict_in_windows(queries, sizes, native, embed, partial(predict_batch, predictor), paste_prediction)


def crop_query(query: ObjectPrompts, window: Window, embedding: ImageEmbedding) -> Query:
    """The query about a window of its image, with prompts in the window's pixels; `embedding` is the encoded window."""
    return Query(
        embedding,
        query.class_name,
        query.references,
        tuple(window.to_window(click) for click in query.clicks),
        None if query.scribbles is None else window.crop(np.asarray(query.scribbles)),
        _previous_in(query, window),
    )


def _previous_in(query: ObjectPrompts, window: Window) -> NDArray[Any] | None:
    """The previous mask of a query in a window."""
    previous = query.previous_mask
    if previous is None or isinstance(previous, SparseMask):
        return None if previous is None else previous.crop(window)
    return window.crop(np.asarray(previous))


def paste_prediction(query: ObjectPrompts, window: Window, prediction: Prediction) -> Prediction:
    """A prediction in a window as one for the whole image.

    Outside the window the previous mask stays; without one the result is empty there. Inside, only one connected
    component of the structure (its old and new pixels together) changes: the one at the newest click or scribble, and
    at older ones that the previous mask contradicts. All other pixels keep their previous value.
    """
    if window.is_whole:
        return prediction
    previous = query.previous_mask
    whole = None if previous is None else np.asarray(previous, dtype=np.float32)
    probability = window.paste(merged_probability(query, window, prediction), whole)
    return Prediction(probability >= THRESHOLD, probability, prediction.presence)


def merged_probability(query: ObjectPrompts, window: Window, prediction: Prediction) -> NDArray[np.float32]:
    """The probabilities in a window, by the rules of `paste_prediction`."""
    previous = _previous_in(query, window)
    if previous is None or window.is_whole:
        return prediction.probability
    before = previous >= THRESHOLD
    prompted = components_touching(before | prediction.mask, _pixels_at_prompts(query, window, before), EIGHT_CONNECTED)
    kept: NDArray[np.float32] = np.where((before != prediction.mask) & ~prompted, previous, prediction.probability)
    return kept


def _pixels_at_prompts(query: ObjectPrompts, window: Window, previous: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (row, column) of the window at the newest prompt, and at clicks and scribbles that `previous` contradicts.

    Scribbles count as made before all clicks.
    """
    pixels = np.zeros(previous.shape, dtype=bool)
    reach = max(1, round(PROMPT_REACH * window.longest))
    for order, click in enumerate(map(window.to_window, query.clicks)):
        row = min(max(0, int(np.floor(click.row + 0.5))), window.rows - 1)
        column = min(max(0, int(np.floor(click.column + 0.5))), window.columns - 1)
        if order == len(query.clicks) - 1 or previous[row, column] != click.positive:
            pixels[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
    if query.scribbles is not None:
        scribbles = window.crop(np.asarray(query.scribbles))
        pixels |= (scribbles != 0) & ((previous != (scribbles > 0)) | (not query.clicks))
    return pixels
