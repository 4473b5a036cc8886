# SPDX-License-Identifier: Apache-2.0
"""Queries in image pixels, and the one place where they become prompts of the network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.prompts import PADDING, Prompts, click_discs
from kprism_model.network.references import References
from kprism_model.preprocess import Geometry
from kprism_model.scribbles import check_scribbles, scribble_points

UNCERTAIN_OUTLINE = 0.15
"""The standard deviation of the blur of a mask's outline, as a share of the mask's largest inner distance.

The network learned to correct its own probabilities. At a sharp outline it believes the mask more than the click.
"""

MAXIMUM_CLICKS = 256
"""A query with more clicks is refused."""

Points = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Positions (K, 2) as (row, column) in image pixels, and labels (K,): 1 positive, 0 negative."""


@dataclass(frozen=True)
class Click:
    """A point in image pixels that is inside the object (positive) or outside it."""

    row: float
    column: float
    positive: bool


@dataclass(frozen=True)
class ImageEmbedding:
    """An encoded image: its `features`, and how it was placed on the network's canvas."""

    features: ImageFeatures
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class Query:
    """One object to segment in one image.

    At least one prompt is needed: `class_name`, a registered class; `references` (of one row); `clicks` in image
    pixels; `scribbles` (row, column) of 1 inside, -1 outside and 0 elsewhere. Clicks and scribbles correct
    `previous_mask` (row, column): probabilities, or a bool mask, whose outline is taken as uncertain.
    """

    embedding: ImageEmbedding
    class_name: str | None = None
    references: References | None = None
    clicks: tuple[Click, ...] = ()
    scribbles: NDArray[Any] | None = None
    previous_mask: NDArray[Any] | None = None

    def with_click(self, click: Click, previous_mask: NDArray[np.float32] | None) -> Query:
        """The query with one more click, which corrects the last prediction."""
        return replace(self, clicks=(*self.clicks, click), previous_mask=previous_mask)

    def points(self) -> Points:
        """Clicks, then the points that represent scribbles; ValueError if the prompts are missing or contradictory."""
        size = self.embedding.geometry.size
        if self.class_name is not None and self.references is not None:
            raise ValueError(f"give a class ({self.class_name!r}) or references, not both")
        points, labels = _check_clicks(self.clicks, size)
        if self.scribbles is not None:
            stroke_points, stroke_labels = scribble_points(check_scribbles(self.scribbles, size))
            points, labels = np.concatenate([points, stroke_points]), np.concatenate([labels, stroke_labels])
        if self.class_name is None and self.references is None and not len(labels):
            raise ValueError("the query has no prompt; expected a class, references, clicks or scribbles")
        return points, labels

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Equal for queries that can share a pass: the size of the canvas, and which prompts there are."""
        return (
            self.embedding.geometry.padded,
            self.class_name is not None,
            0 if self.references is None else tuple(self.references.keys.shape[1:]),
            bool(self.clicks) or (self.scribbles is not None and bool(np.any(self.scribbles))),
        )


def batches(queries: Sequence[Query], batch: int) -> Iterator[list[int]]:
    """Numbers of the queries that share a pass: at most `batch` of one `Query.batch_key`."""
    by_key: dict[tuple[object, ...], list[int]] = {}
    for row, query in enumerate(queries):
        by_key.setdefault(query.batch_key, []).append(row)
    for rows in by_key.values():
        for start in range(0, len(rows), batch):
            yield rows[start : start + batch]


def build_prompts(
    queries: Sequence[Query],
    registry: ClassRegistry,
    device: torch.device,
    *,
    minimum_presence: float | None = None,
) -> tuple[ImageFeatures, Prompts]:
    """Features of the different images of `queries`, which share a `Query.batch_key`, and a row of prompts for each.

    ValueError for no prompt, a class together with references, an unknown class, points outside the image, or arrays of
    another size than the image.
    """
    points = [query.points() for query in queries]
    unique = {id(query.embedding): query.embedding.features for query in queries}
    numbers = {key: number for number, key in enumerate(unique)}
    prompts = Prompts(
        queries[0].embedding.geometry.padded,
        torch.tensor([numbers[id(query.embedding)] for query in queries], device=device),
        class_index=_class_index(queries, registry, device),
        references=_batch_references([query.references for query in queries if query.references is not None]),
        minimum_presence=minimum_presence,
        **_spatial_prompts(queries, points, device),
    )
    features = list(unique.values())
    if len(features) == 1:
        return features[0], prompts
    return ImageFeatures(*(torch.cat(scales) for scales in zip(*features, strict=True))), prompts


def join_references(parts: Sequence[References]) -> References:
    """References of the same rows as one set, concatenated along R."""
    if len(parts) == 1:
        return parts[0]
    summaries = zip(*(part.summaries for part in parts), strict=True)
    return References(
        tuple(torch.cat(scale, dim=1) for scale in summaries),  # type: ignore[arg-type]
        torch.cat([part.keys for part in parts], dim=1),
        torch.cat([part.values for part in parts], dim=1),
    )


def _class_index(queries: Sequence[Query], registry: ClassRegistry, device: torch.device) -> Tensor | None:
    rows = [registry.index(query.class_name) for query in queries if query.class_name is not None]
    return torch.tensor(rows, device=device) if rows else None


def _batch_references(rows: Sequence[References]) -> References | None:
    """References of one row each as one batch; if all rows have the same references, they are not copied."""
    if not rows or all(references is rows[0] for references in rows):
        return rows[0] if rows else None
    summaries = zip(*(references.summaries for references in rows), strict=True)
    return References(
        tuple(torch.cat(scale) for scale in summaries),  # type: ignore[arg-type]
        torch.cat([references.keys for references in rows]),
        torch.cat([references.values for references in rows]),
    )


def _spatial_prompts(queries: Sequence[Query], points: Sequence[Points], device: torch.device) -> dict[str, Tensor]:
    """Padded points with their labels, and the dense map of discs, strokes and previous masks; empty for no prompt."""
    count = max(len(labels) for _, labels in points)
    if count == 0 and all(query.previous_mask is None for query in queries):
        return {}
    size = queries[0].embedding.geometry.padded
    positions = torch.full((len(queries), count, 2), -1.0)
    signs = torch.full((len(queries), count), PADDING)
    previous = torch.zeros(len(queries), 1, *size)
    for row, (query, (where, labels)) in enumerate(zip(queries, points, strict=True)):
        positions[row, : len(labels)] = torch.from_numpy(query.embedding.geometry.points_to_model(where)).float()
        signs[row, : len(labels)] = torch.from_numpy(labels)
        if query.previous_mask is not None:
            previous[row] = _previous(query.previous_mask, query.embedding.geometry)
    discs = click_discs(positions, signs, size)
    for row, query in enumerate(queries):
        if query.scribbles is not None:
            _draw_strokes(discs[row], query.scribbles, query.embedding.geometry)
    dense = torch.cat([discs, previous], dim=1).to(device)
    sparse = {"points": positions.to(device), "point_labels": signs.to(device)} if count else {}
    return {**sparse, "dense": dense}


def _previous(mask: NDArray[Any], geometry: Geometry) -> Tensor:
    values = np.asarray(mask, dtype=np.float32)
    if values.shape != geometry.size:
        raise ValueError(f"previous_mask has shape {values.shape}, but the image has shape {geometry.size}")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"previous_mask must hold probabilities from 0 to 1, got {values.min():g} to {values.max():g}")
    on_canvas = geometry.mask_to_model(values)
    return _with_uncertain_outline(on_canvas) if mask.dtype == bool else on_canvas


def _with_uncertain_outline(share: Tensor) -> Tensor:
    """Probabilities for a mask, given as the `share` (1, H, W) of each canvas pixel that it covers."""
    values = share[0].numpy()
    inside = values >= 0.5
    if inside.all() or not inside.any():
        return share
    deviation = UNCERTAIN_OUTLINE * float(ndimage.distance_transform_edt(inside).max())
    return torch.from_numpy(ndimage.gaussian_filter(values, deviation, mode="nearest"))[None]


def _draw_strokes(discs: Tensor, scribbles: NDArray[Any], geometry: Geometry) -> None:
    for channel, sign in enumerate((1, -1)):
        # Drawn pixel by pixel, so that a thin stroke does not vanish on a canvas that is smaller than the image.
        pixels = geometry.points_to_model(np.argwhere(np.asarray(scribbles) == sign)).round().astype(np.int64)
        rows, columns = np.clip(pixels, 0, np.array(geometry.padded) - 1).T
        discs[channel, rows, columns] = 1.0


def _check_clicks(clicks: Sequence[Click], size: tuple[int, int]) -> Points:
    """Points and labels of valid clicks."""
    if len(clicks) > MAXIMUM_CLICKS:
        raise ValueError(f"{len(clicks)} clicks; at most {MAXIMUM_CLICKS} are accepted")
    for click in clicks:
        inside = -0.5 <= click.row <= size[0] - 0.5 and -0.5 <= click.column <= size[1] - 0.5  # false for NaN
        if not (math.isfinite(click.row) and math.isfinite(click.column) and inside):
            raise ValueError(
                f"click at row {click.row}, column {click.column} is outside the image of {size[0]} x {size[1]}"
            )
    points = np.array([(click.row, click.column) for click in clicks], dtype=np.float64).reshape(-1, 2)
    return points, np.array([int(click.positive) for click in clicks], dtype=np.int64)
