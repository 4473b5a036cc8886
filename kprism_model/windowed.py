# SPDX-License-Identifier: Apache-2.0
"""Answers in windows: corrections are made where the structure is, at a resolution at which it can be seen.

A first look is at the whole image. From the second look on (see `choose_window`) the question is asked in a window, and
in a wider one as long as the answered mask is cut off by the window's sides. Where there is a previous mask, only the
connected part that is prompted changes (after the "progressive merge" of FocalClick, arXiv 2204.02574). The answer is a
function of the image and the question alone. Answers about the whole image are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.network.references import References
from kprism_model.predictor import THRESHOLD, Prediction, Predictor, predict_batch
from kprism_model.queries import ImageEmbedding, Query
from kprism_model.store import Store, cached
from kprism_model.window import Box, Size, SpatialPrompts, Window, WindowRules, choose_window

RULES = WindowRules()
"""The rules of all answers, chosen on validation lists."""

REACH = 1 / 64
"""A change counts as being at a click within this share of the window's long side, three pixels of a canvas of 192."""

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class ObjectPrompts(SpatialPrompts, Protocol):
    """A question without its image: what `Query` and `Question` have in common."""

    @property
    def class_name(self) -> str | None:
        """A class that the network knows."""

    @property
    def references(self) -> References | None:
        """Encoded references."""


def answer_in_windows(
    asked: Sequence[ObjectPrompts],
    sizes: Sequence[Size],
    native: int,
    embed: Callable[[int, Window], ImageEmbedding],
    answer: Callable[[Sequence[Query]], Sequence[Prediction]],
    rules: WindowRules = RULES,
) -> list[Prediction]:
    """Answers in order, each of its image's size.

    `sizes` are the images' (rows, columns), `native` is the long side of the network's canvas. `embed` gives a window,
    encoded, of the image of the question of that number; it is asked for the same windows again and again, and should
    keep what it encodes. `answer` is `predict_batch`.
    """
    windows = {number: choose_window(sizes[number], native, one, rules) for number, one in enumerate(asked)}
    seen: dict[int, Box | None] = {}
    found: dict[int, Prediction] = {}
    while windows:
        queries = [query_in(asked[number], window, embed(number, window)) for number, window in windows.items()]
        for (number, window), prediction in zip(list(windows.items()), answer(queries), strict=True):
            if window.cuts(prediction.mask):
                box = Box.around(window.paste(prediction.mask))
                seen[number] = box if box is None else box.joined(seen.get(number))
                windows[number] = choose_window(
                    sizes[number], native, asked[number], rules, seen=seen[number], wider_than=window.longest
                )
            else:
                del windows[number]
                found[number] = merged(asked[number], window, prediction)
    return [found[number] for number in range(len(asked))]


def answer_queries(
    predictor: Predictor, images: Mapping[int, NDArray[np.float32]], store: Store, queries: Sequence[Query]
) -> list[Prediction]:
    """`predict_batch` in windows.

    `images` are found by the `id` of their embeddings, which must live as long as `store`, where windows are kept.
    """

    def embed(number: int, window: Window) -> ImageEmbedding:
        embedding = queries[number].embedding
        if window.is_whole:
            return embedding
        crop = np.ascontiguousarray(window.crop(images[id(embedding)]))
        return cached(store, (id(embedding), window), lambda: predictor.embed([crop])[0])

    sizes = [query.embedding.geometry.size for query in queries]
    native = predictor.model.config.native_size
    return answer_in_windows(queries, sizes, native, embed, partial(predict_batch, predictor))


def query_in(asked: ObjectPrompts, window: Window, embedding: ImageEmbedding) -> Query:
    """The same question about a window of its image, which `embedding` is of; class and references are kept."""
    return Query(
        embedding,
        asked.class_name,
        asked.references,
        tuple(window.to_window(click) for click in asked.clicks),
        None if asked.scribbles is None else window.crop(np.asarray(asked.scribbles)),
        None if asked.previous_mask is None else window.crop(np.asarray(asked.previous_mask)),
    )


def merged(asked: ObjectPrompts, window: Window, prediction: Prediction) -> Prediction:
    """An answer in a window as one about the whole image.

    Outside of the window is the previous mask, or nothing. Inside, changes are made to the connected part of the
    structure (as it was and as it becomes) that is prompted: by the newest click, or strokes, and by older ones that
    the previous mask contradicts. Pixels of other parts that the answer would add or take away keep what they were.
    """
    if window.is_whole:
        return prediction
    probability = prediction.probability
    if asked.previous_mask is None:
        probability = window.paste(probability)
    else:
        whole = np.asarray(asked.previous_mask, dtype=np.float32)
        previous = window.crop(whole)
        before = previous >= THRESHOLD
        held = _at_prompts(before, prediction.mask, _pixels_at_prompts(asked, window, before))
        probability = np.where((before != prediction.mask) & ~held, previous, probability)
        probability = window.paste(probability, whole)
    return Prediction(probability >= THRESHOLD, probability, prediction.presence)


def _at_prompts(previous: NDArray[np.bool_], mask: NDArray[np.bool_], prompts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of what is in either of two masks (row, column) that hold one of the pixels `prompts`."""
    parts, count = ndimage.label(previous | mask, _EIGHT_CONNECTED)
    held = np.zeros(count + 1, dtype=bool)
    held[parts[prompts]] = True
    held[0] = False
    result: NDArray[np.bool_] = held[parts]
    return result


def _pixels_at_prompts(asked: ObjectPrompts, window: Window, previous: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels (row, column) of the window at the newest prompt, and at clicks and strokes that `previous` contradicts.

    Strokes count as made before all clicks.
    """
    pixels = np.zeros(previous.shape, dtype=bool)
    reach = max(1, round(REACH * window.longest))
    for place, click in enumerate(map(window.to_window, asked.clicks)):
        row = min(max(0, int(np.floor(click.row + 0.5))), window.rows - 1)
        column = min(max(0, int(np.floor(click.column + 0.5))), window.columns - 1)
        if place == len(asked.clicks) - 1 or previous[row, column] != click.positive:
            pixels[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
    if asked.scribbles is not None:
        drawn = window.crop(np.asarray(asked.scribbles))
        pixels |= (drawn != 0) & ((previous != (drawn > 0)) | (not asked.clicks))
    return pixels
