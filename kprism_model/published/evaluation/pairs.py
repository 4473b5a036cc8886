# SPDX-License-Identifier: Apache-2.0
"""The pairs of slice and structure of some cases, encoded, with the network's canvas as their image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.datasets import Case, Dataset, load_case
from kprism_model.data.structures import StructureMap
from kprism_model.predictor import Predictor
from kprism_model.preprocess import Geometry
from kprism_model.published.evaluation.clicks import Counts
from kprism_model.queries import ImageEmbedding

BLOCK_SLICES = 32
"""Slices that are encoded together and then used for all modes."""

_Slice = tuple[str, int, NDArray[np.float32], NDArray[np.uint8]]  # case, number, image, structures

_BLOCK_PIXELS = 1 << 25  # fewer slices if they are large: pictures of a skin have 24 million pixels


@dataclass(frozen=True, eq=False)
class Pair:
    """A structure in a slice: `index` is its label, `embedding` the encoded slice with the canvas as its image.

    `target` is the truth on the canvas, bool (row, column); `own` the truth in the pixels of the slice, bool (row,
    column) on the network's device; `true` its number of pixels, at least 1.
    """

    case: str
    number: int
    index: int
    embedding: ImageEmbedding
    target: NDArray[np.bool_]
    own: Tensor = field(repr=False)
    true: int

    def count(self, probability: NDArray[np.float32]) -> Counts:
        """Pixels that a mask shares with the truth, and its pixels, from probabilities on the canvas."""
        given = torch.from_numpy(probability).to(self.own.device)
        size = (self.own.shape[0], self.own.shape[1])
        if tuple(given.shape) != size:
            given = F.interpolate(given[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        mask = given > 0.5
        overlap, predicted = torch.stack([(mask & self.own).sum(), mask.sum()]).tolist()
        return int(overlap), int(predicted)


def pair_blocks(
    predictor: Predictor, dataset: Dataset, structures: StructureMap, cases: Sequence[Case], batch: int
) -> Iterator[tuple[int, list[Pair]]]:
    """The pairs of labelled cases, some slices at a time, and the number of cases that are done by then.

    Slices without a structure are not encoded. A slice's pairs are never in two blocks.
    """
    block: list[_Slice] = []
    for done, case in enumerate(cases):
        images, labels = load_structures(dataset, structures, case)
        for number in np.flatnonzero(labels.any(axis=(1, 2))).tolist():
            block.append((case.name, number, images[number], labels[number]))
            if len(block) == BLOCK_SLICES or sum(one[3].size for one in block) >= _BLOCK_PIXELS:
                yield done, _pairs(predictor, structures, block, batch)
                block = []
    yield len(cases), _pairs(predictor, structures, block, batch)


def load_structures(
    dataset: Dataset, structures: StructureMap, case: Case
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The slices of a labelled case in [0, 1], and their structures (slice, row, column)."""
    loaded = load_case(dataset, case)
    assert loaded.labels is not None  # only labelled cases are used
    return loaded.images, structures.apply(loaded.labels)


def _pairs(predictor: Predictor, structures: StructureMap, block: Sequence[_Slice], batch: int) -> list[Pair]:
    pairs = []
    for start in range(0, len(block), batch):
        part = block[start : start + batch]
        for (case, number, _, labels), embedding in zip(part, predictor.embed([one[2] for one in part]), strict=True):
            geometry = embedding.geometry
            on_canvas = ImageEmbedding(embedding.features, as_canvas(geometry))
            small = nearest(labels, geometry.resized)
            own = torch.from_numpy(labels).to(predictor.device)
            for index in structures.classes:
                if true := int(np.count_nonzero(labels == index)):
                    pairs.append(Pair(case, number, index, on_canvas, small == index, own == index, true))
    return pairs


def as_canvas(geometry: Geometry) -> Geometry:
    """The geometry of an image that is the resized image itself, so that its pixels are those of the canvas."""
    return Geometry(geometry.resized, geometry.resized, geometry.padded)


def nearest(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels (row, column) resized to `size`: each new pixel is the old one that holds its upper left corner."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, labels.shape, strict=True))
    resized: NDArray[np.uint8] = labels[rows[:, None], columns[None, :]]
    return resized
