# SPDX-License-Identifier: Apache-2.0
"""Dice on slices that are not trained on, quick enough to be measured every few minutes of a training.

Each class of each data set is asked for in a few slices that show it: by name, by references, and by clicks. Everything
is deterministic, so the figures of one run compare; they are no substitute for `evaluate`, which asks more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.targets import Target, targets
from kprism_model.interaction.click_sessions import ClickSession, run_click_sessions
from kprism_model.metrics import dice
from kprism_model.network.references import References
from kprism_model.orientation import evenly_spaced
from kprism_model.predictor import Predictor, predict_batch
from kprism_model.queries import ImageEmbedding, Query

COLUMNS = ("semantic", "1 click", "5 clicks", "in-context")
"""What is measured; in-context masks have up to three references."""

SLICES = 4
"""Slices of each class of a data set that are looked at, each of another case."""

_REFERENCES = 3
_EVERY = 10  # patient of a data set that is held out
_TOGETHER = 64  # masks of a pass


class HeldOutDice(NamedTuple):
    """Mean Dice of a structure over `slices` slices, in the order of `COLUMNS`; None where it cannot be asked for."""

    dataset: str
    structure: str
    slices: int
    dice: tuple[float | None, ...]


class _Object(NamedTuple):
    """A structure in a slice, with its true mask (row, column)."""

    target: Target
    row: int
    mask: NDArray[np.bool_]


def hold_out(store: SliceStore) -> tuple[SliceStore, SliceStore]:
    """A store without every tenth patient of each data set, and one of these; sets of fewer than ten keep them all."""
    kept, held_out = [], []
    for part in store.sets:
        away = part.patient % _EVERY == _EVERY - 1
        kept.append(_rows(part, ~away) if away.any() else part)
        if away.any():
            held_out.append(_rows(part, away))
    return replace(store, sets=tuple(kept)), replace(store, sets=tuple(held_out))


def measure(predictor: Predictor, store: SliceStore, *, slices: int = SLICES) -> list[HeldOutDice]:
    """Dice of each class of each data set of `store`, on `slices` slices that show it."""
    return [row for part in store.sets for row in _measure_set(predictor, part, slices)]


def means(rows: Sequence[HeldOutDice]) -> dict[str, float | None]:
    """The mean of each column over data sets, of each of which it is the mean over structures."""
    found: dict[str, float | None] = {}
    for number, column in enumerate(COLUMNS):
        by_set: dict[str, list[float]] = {}
        for row in rows:
            value = row.dice[number]
            if value is not None:
                by_set.setdefault(row.dataset, []).append(value)
        found[column] = _mean([float(np.mean(values)) for values in by_set.values()])
    return found


def to_markdown(rows: Sequence[HeldOutDice]) -> str:
    """A table of all rows below their means."""
    lines = [
        "| data set | structure | slices | " + " | ".join(COLUMNS) + " |",
        "|---|---|---:|" + "---:|" * len(COLUMNS),
    ]
    total = sum(row.slices for row in rows)
    for row in [HeldOutDice("mean of the data sets", "", total, tuple(means(rows).values())), *rows]:
        values = " | ".join("" if value is None else f"{value:.3f}" for value in row.dice)
        lines.append(f"| {row.dataset} | {row.structure} | {row.slices} | {values} |")
    return "\n".join(lines) + "\n"


def _measure_set(predictor: Predictor, part: SliceSet, slices: int) -> list[HeldOutDice]:
    """All structures of a data set together, so that passes are full."""
    height_width = part.content
    objects = [
        _Object(target, row, target.mask(row)[: height_width[row, 0], : height_width[row, 1]])
        for target in targets(part)
        for row in _middle_slices(target, slices)
    ]
    rows = sorted({one.row for one in objects})
    embedded = dict(zip(rows, predictor.embed([_picture(part, row) for row in rows]), strict=True))
    columns = (
        _answered(predictor, objects, [_by_name(predictor, one, embedded[one.row]) for one in objects]),
        *_clicked(predictor, objects, embedded),
        _answered(predictor, objects, [_by_reference(predictor, one, objects, embedded[one.row]) for one in objects]),
    )
    found = []
    for target in dict.fromkeys(one.target.name for one in objects):
        own = [number for number, one in enumerate(objects) if one.target.name == target]
        scores = tuple(_mean([column[number] for number in own]) for column in columns)
        found.append(HeldOutDice(part.name, target, len(own), scores))
    return found


def _by_name(predictor: Predictor, one: _Object, embedding: ImageEmbedding) -> Query | None:
    return Query(embedding, one.target.name) if one.target.name in predictor.registry else None


def _by_reference(
    predictor: Predictor, one: _Object, objects: Sequence[_Object], embedding: ImageEmbedding
) -> Query | None:
    """The structure as slices of other patients show it."""
    part = one.target.slice_set
    others = [
        other for other in objects if other.target is one.target and part.patient[other.row] != part.patient[one.row]
    ][:_REFERENCES]
    if not others:
        return None
    references: References = predictor.embed_references(
        [_picture(part, other.row) for other in others], [other.mask for other in others]
    )
    return Query(embedding, references=references)


def _answered(predictor: Predictor, objects: Sequence[_Object], queries: Sequence[Query | None]) -> list[float | None]:
    """Dice of the masks that users would get."""
    asked = [number for number, query in enumerate(queries) if query is not None]
    answers = predict_batch(predictor, [query for query in queries if query is not None], batch=_TOGETHER)
    found: list[float | None] = [None] * len(objects)
    for number, answer in zip(asked, answers, strict=True):
        found[number] = dice(answer.mask_if_present, objects[number].mask)
    return found


def _clicked(
    predictor: Predictor, objects: Sequence[_Object], embedded: dict[int, ImageEmbedding]
) -> tuple[list[float | None], list[float | None]]:
    """Dice after one and after five clicks of the simulated annotator."""
    sessions = [ClickSession(Query(embedded[one.row]), one.mask, None) for one in objects]
    run_click_sessions(partial(predict_batch, predictor, batch=_TOGETHER), sessions, 5, batch_size=_TOGETHER)
    return [session.after(1) for session in sessions], [session.after(5) for session in sessions]


def _middle_slices(target: Target, count: int) -> list[int]:
    """The middle one of the slices that show a structure, of cases spread over all."""
    cases = [target.shown[number] for number in evenly_spaced(range(len(target.shown)), count)]
    return [int(rows[len(rows) // 2]) for rows in cases]


def _picture(part: SliceSet, row: int) -> NDArray[np.float32]:
    """A slice without its padding, grey or colour, in [0, 1]."""
    height, width = part.content[row]
    image: NDArray[np.float32] = np.asarray(part.images[row, :height, :width], dtype=np.float32) / 255
    return image[..., 0] if image.shape[2] == 1 else image


def _rows(part: SliceSet, chosen: NDArray[np.bool_]) -> SliceSet:
    arrays = ("images", "labels", "case", "number", "content", "pixels")
    return replace(part, **{name: getattr(part, name)[chosen] for name in arrays})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
