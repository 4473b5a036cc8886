# SPDX-License-Identifier: Apache-2.0
"""Many questions to a predictor at once: rows of any image, with the same kinds of knowledge, decoded in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.encoder import ImageFeatures
from kprism_model.predictor import THRESHOLD, Click, ImageEmbedding, Prediction, Predictor
from kprism_model.prompts import PADDING, Prompts, click_discs
from kprism_model.references import References


@dataclass(frozen=True, eq=False)
class Query:
    """One object asked for in one image.

    `class_name` is semantic knowledge, `references` (for one row) in-context knowledge; the queries of a call must have
    the same of them, and references of one number of images. `clicks` are in pixels of the image, `previous_mask` is
    the mask or probability (row, column) that they correct.
    """

    embedding: ImageEmbedding
    class_name: str | None = None
    references: References | None = None
    clicks: tuple[Click, ...] = ()
    previous_mask: NDArray[np.float32] | None = None

    def clicked(self, click: Click, previous_mask: NDArray[np.float32] | None) -> Query:
        """The same question with one click more, on the mask that was the last answer."""
        return replace(self, clicks=(*self.clicks, click), previous_mask=previous_mask)


@torch.inference_mode()
def predict_batch(predictor: Predictor, queries: Sequence[Query], *, batch: int = 16) -> list[Prediction]:
    """The answers that `Predictor.predict` gives to each query, in order, `batch` rows of one canvas size a pass."""
    answers: dict[int, Prediction] = {}
    for rows in _same_canvas(queries, batch):
        chosen = [queries[row] for row in rows]
        features, image_index = _features(chosen)
        decoded = predictor.model.decode(features, _prompts(predictor, chosen, image_index))
        presence = decoded.presence.sigmoid().tolist()
        for number, (row, query) in enumerate(zip(rows, chosen, strict=True)):
            logits = query.embedding.geometry.logits_to_image(decoded.logits[-1][number, 0])
            probability = logits.sigmoid().cpu().numpy()
            answers[row] = Prediction(probability >= THRESHOLD, probability, presence[number])
    return [answers[row] for row in range(len(queries))]


def _same_canvas(queries: Sequence[Query], batch: int) -> Iterator[list[int]]:
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, query in enumerate(queries):
        by_size.setdefault(query.embedding.geometry.padded, []).append(row)
    for rows in by_size.values():
        for start in range(0, len(rows), batch):
            yield rows[start : start + batch]


def _features(queries: Sequence[Query]) -> tuple[ImageFeatures, Tensor]:
    """The features of the different images among the queries, and which of them each query is about."""
    unique = {id(query.embedding): query.embedding.features for query in queries}
    numbers = {key: number for number, key in enumerate(unique)}
    scales = zip(*unique.values(), strict=True)
    index = torch.tensor([numbers[id(query.embedding)] for query in queries])
    features = ImageFeatures(*(torch.cat(scale) for scale in scales))
    return features, index.to(features.stride4.device)


def _prompts(predictor: Predictor, queries: Sequence[Query], image_index: Tensor) -> Prompts:
    return Prompts(
        queries[0].embedding.geometry.padded,
        image_index,
        class_index=_class_index(predictor, queries),
        references=_stacked_references(queries),
        **_clicks(queries, predictor.device),
    )


def _class_index(predictor: Predictor, queries: Sequence[Query]) -> Tensor | None:
    rows = [predictor.registry.index(query.class_name) for query in queries if query.class_name is not None]
    if rows and len(rows) < len(queries):
        raise ValueError(f"{len(rows)} of {len(queries)} queries name a class; expected all or none")
    return torch.tensor(rows, device=predictor.device) if rows else None


def _stacked_references(queries: Sequence[Query]) -> References | None:
    given = [query.references for query in queries if query.references is not None]
    if given and len(given) < len(queries):
        raise ValueError(f"{len(given)} of {len(queries)} queries have references; expected all or none")
    if not given or all(references is given[0] for references in given):
        return given[0] if given else None
    summaries = zip(*(references.summaries for references in given), strict=True)
    return References(
        tuple(torch.cat(scale) for scale in summaries),  # type: ignore[arg-type]
        torch.cat([references.keys for references in given]),
        torch.cat([references.values for references in given]),
    )


def _clicks(queries: Sequence[Query], device: torch.device) -> dict[str, Any]:
    """Padded points and labels, and the dense map of discs and previous masks; nothing where nobody clicked."""
    most = max(len(query.clicks) for query in queries)
    if most == 0:
        return {}
    size = queries[0].embedding.geometry.padded
    points = torch.full((len(queries), most, 2), -1.0)
    labels = torch.full((len(queries), most), PADDING)
    previous = torch.zeros(len(queries), 1, *size)
    for row, query in enumerate(queries):
        geometry, count = query.embedding.geometry, len(query.clicks)
        positions = np.array([(click.row, click.column) for click in query.clicks]).reshape(-1, 2)
        points[row, :count] = torch.from_numpy(geometry.points_to_model(positions)).float()
        labels[row, :count] = torch.tensor([int(click.positive) for click in query.clicks])
        if query.previous_mask is not None:
            previous[row] = geometry.mask_to_model(query.previous_mask)
    dense = torch.cat([click_discs(points, labels, size), previous], dim=1)
    return {"points": points.to(device), "point_labels": labels.to(device), "dense": dense.to(device)}
