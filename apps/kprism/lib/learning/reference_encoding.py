# SPDX-License-Identifier: Apache-2.0
"""Encoding a labelled case: which slices of a structure become references, and what the network keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.partial import AnnotatedCase
from kprism_model.predictor import Predictor
from kprism_model.preprocess import Geometry, evenly_spaced

SLICES_PER_STRUCTURE = 4
"""Slices of a case that are kept for each structure."""

MIN_AREA_SHARE = 0.2
"""Slices on which a structure has less than this share of its largest area show too little of it."""

SLICES_PER_BATCH = 8
"""Slices that are encoded in one pass."""


def chosen_slices(mask: NDArray[np.bool_], count: int = SLICES_PER_STRUCTURE) -> list[int]:
    """At most `count` slices of a mask (slice, row, column), spread evenly over those with enough of its area."""
    return slices_by_area(mask.sum(axis=(1, 2)), count)


def slices_by_area(areas: NDArray[np.int64], count: int = SLICES_PER_STRUCTURE) -> list[int]:
    """The same for the number of pixels of the structure on each slice."""
    return evenly_spaced(np.flatnonzero(areas >= max(1, MIN_AREA_SHARE * areas.max())), count)


@torch.inference_mode()
def encode_slices(
    predictor: Predictor,
    case: AnnotatedCase,
    rows: Sequence[tuple[str, int]],
    run: Callable[[Callable[[], Any]], Any],
) -> dict[str, Tensor]:
    """Summaries, keys and values (float16), prototypes and mean features (float32) of slices with a structure."""
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(rows), SLICES_PER_BATCH):
        chosen = rows[start : start + SLICES_PER_BATCH]
        images = [case.picture(number) for _, number in chosen]
        masks = [case.mask(name)[number] for name, number in chosen]
        encoded = run(partial(predictor.embed_references, images, masks))
        keys = encoded.keys[0].float().cpu()
        inside = object_shares(masks, predictor.model.config.native_size, (keys.shape[-2], keys.shape[-1]))
        weights = inside / inside.sum((1, 2), keepdim=True).clamp(min=1e-6)
        part = {f"summary{level}": summary[0] for level, summary in enumerate(encoded.summaries)}
        part |= {"keys": keys, "values": encoded.values[0]}
        part = {name: tensor.half().cpu() for name, tensor in part.items()}
        part["prototype"] = torch.einsum("nchw,nhw->nc", keys, weights)
        part["mean"] = keys.mean((2, 3))
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}


def object_shares(masks: Sequence[NDArray[np.bool_]], native: int, size: tuple[int, int]) -> Tensor:
    """The share of each pixel of the coarsest features that an object covers, (n, h, w), on a square canvas."""
    canvas = torch.zeros(len(masks), 1, native, native)
    for number, mask in enumerate(masks):
        geometry = Geometry.fit((mask.shape[0], mask.shape[1]), native)
        rows, columns = geometry.padded
        canvas[number, :, :rows, :columns] = geometry.mask_to_model(mask)
    return F.interpolate(canvas, size, mode="area")[:, 0]
