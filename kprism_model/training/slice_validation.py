# SPDX-License-Identifier: Apache-2.0
"""Dice on slices that are not trained on, fast enough to be measured every few minutes of a training.

Each class of each data set is segmented in a few slices that show it: by name, with references, and with clicks. All
of it is deterministic, so the figures of one run can be compared; they do not replace `evaluate`, which measures more.
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
from kprism_model.predictor import Predictor, predict_batch
from kprism_model.preprocess import evenly_spaced
from kprism_model.queries import ImageEmbedding, Query

COLUMNS = ("semantic", "1 click", "5 clicks", "in-context")
"""The measured modes; in-context masks have up to three references."""

SLICES = 4
"""Slices of each class of a data set, each of another case."""

_REFERENCES = 3
_PATIENTS_PER_HELD_OUT = 10
_BATCH = 64  # masks in one pass of the decoder


class StructureDice(NamedTuple):
    """Mean Dice of a structure over `slices` slices, in the order of `COLUMNS`; None in modes that do not apply."""

    dataset: str
    structure: str
    slices: int
    dice: tuple[float | None, ...]


class _Object(NamedTuple):
    """A structure in a slice, with its true mask (row, column)."""

    target: Target
    row: int
    mask: NDArray[np.bool_]


def split_validation(store: SliceStore) -> tuple[SliceStore, SliceStore]:
    """Training and validation part of a store: every tenth patient of each data set is for validation."""
    training, validation = [], []
    for part in store.sets:
        held_out = part.patient % _PATIENTS_PER_HELD_OUT == _PATIENTS_PER_HELD_OUT - 1
        training.append(_rows(part, ~held_out) if held_out.any() else part)
        if held_out.any():
            validation.append(_rows(part, held_out))
    return replace(store, sets=tuple(training)), replace(store, sets=tuple(validation))


def validate_slices(predictor: Predictor, store: SliceStore, *, slices: int = SLICES) -> list[StructureDice]:
    """Dice of each class of each data set of `store`, on `slices` slices that show it."""
    return [row for part in store.sets for row in _measure_set(predictor, part, slices)]


def column_means(rows: Sequence[StructureDice]) -> dict[str, float | None]:
    """The mean of each column: over the structures of a data set, then over the data sets."""
    result: dict[str, float | None] = {}
    for number, column in enumerate(COLUMNS):
        by_set: dict[str, list[float]] = {}
        for row in rows:
            value = row.dice[number]
            if value is not None:
                by_set.setdefault(row.dataset, []).append(value)
        result[column] = _mean([float(np.mean(values)) for values in by_set.values()])
    return result


def to_markdown(rows: Sequence[StructureDice]) -> str:
    """A table of all rows below their means."""
    lines = [
        "| data set | structure | slices | " + " | ".join(COLUMNS) + " |",
        "|---|---|---:|" + "---:|" * len(COLUMNS),
    ]
    total = sum(row.slices for row in rows)
    for row in [StructureDice("mean of the data sets", "", total, tuple(column_means(rows).values())), *rows]:
        values = " | ".join("" if value is None else f"{value:.3f}" for value in row.dice)
        lines.append(f"| {row.dataset} | {row.structure} | {row.slices} | {values} |")
    return "\n".join(lines) + "\n"


def _measure_set(predictor: Predictor, part: SliceSet, slices: int) -> list[StructureDice]:
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
        _dice_of(predictor, objects, [_by_name(predictor, one, embedded[one.row]) for one in objects]),
        *_dice_after_clicks(predictor, objects, embedded),
        _dice_of(predictor, objects, [_by_references(predictor, one, objects, embedded[one.row]) for one in objects]),
    )
    result = []
    for target in dict.fromkeys(one.target.name for one in objects):
        own = [number for number, one in enumerate(objects) if one.target.name == target]
        scores = tuple(_mean([column[number] for number in own]) for column in columns)
        result.append(StructureDice(part.name, target, len(own), scores))
    return result


def _by_name(predictor: Predictor, one: _Object, embedding: ImageEmbedding) -> Query | None:
    return Query(embedding, one.target.name) if one.target.name in predictor.registry else None


def _by_references(
    predictor: Predictor, one: _Object, objects: Sequence[_Object], embedding: ImageEmbedding
) -> Query | None:
    """A query with slices of other patients as references; None if no other patient shows the structure."""
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


def _dice_of(predictor: Predictor, objects: Sequence[_Object], queries: Sequence[Query | None]) -> list[float | None]:
    """Dice of the masks that users would get; None where there is no query."""
    asked = [number for number, query in enumerate(queries) if query is not None]
    answers = predict_batch(predictor, [query for query in queries if query is not None], batch=_BATCH)
    scores: list[float | None] = [None] * len(objects)
    for number, answer in zip(asked, answers, strict=True):
        scores[number] = dice(answer.mask_if_present, objects[number].mask)
    return scores


def _dice_after_clicks(
    predictor: Predictor, objects: Sequence[_Object], embedded: dict[int, ImageEmbedding]
) -> tuple[list[float | None], list[float | None]]:
    """Dice after one and after five clicks of the simulated user."""
    sessions = [ClickSession(Query(embedded[one.row]), one.mask, None) for one in objects]
    run_click_sessions(partial(predict_batch, predictor, batch=_BATCH), sessions, 5, batch_size=_BATCH)
    return [session.after(1) for session in sessions], [session.after(5) for session in sessions]


def _middle_slices(target: Target, count: int) -> list[int]:
    """The middle one of the slices of a case that show a structure, for `count` cases spread over all."""
    cases = [target.shown[number] for number in evenly_spaced(range(len(target.shown)), count)]
    return [int(rows[len(rows) // 2]) for rows in cases]


def _picture(part: SliceSet, row: int) -> NDArray[np.float32]:
    """A slice without its padding, (row, column) or (row, column, 3), in [0, 1]."""
    height, width = part.content[row]
    image: NDArray[np.float32] = np.asarray(part.images[row, :height, :width], dtype=np.float32) / 255
    return image[..., 0] if image.shape[2] == 1 else image


def _rows(part: SliceSet, chosen: NDArray[np.bool_]) -> SliceSet:
    arrays = ("images", "labels", "case", "number", "content", "pixels")
    return replace(part, **{name: getattr(part, name)[chosen] for name in arrays})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
