# SPDX-License-Identifier: Apache-2.0
"""The simulated user's clicks and scribbles: where a person would correct a mask.

The rule is the paper's (K-Prism, training section; as in RITM, arXiv 2102.06583): a click goes to the centre of the
largest connected error region. It is positive if the structure was missed there, negative if the mask is spurious.
Points are (row, column) with pixel centres at integer coordinates.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.components import EIGHT_CONNECTED, bounding_box, largest_component

BoolArray = NDArray[np.bool_]

_LARGEST_SIDE = 96  # pixels; the depth of a longer component is measured on a coarser grid
_JITTER_DEPTH = 0.5  # jittered clicks stay at least this share of the greatest depth away from the region's edge
_SCRIBBLE_DEPTH = 0.3
_SCRIBBLE_NODES = 4


def next_click(
    prediction: BoolArray, target: BoolArray, *, rng: np.random.Generator | None = None
) -> tuple[float, float, bool] | None:
    """The simulated user's next click on `prediction` (H, W) given the true mask `target` (H, W).

    Returns (row, column, positive), or None if the masks are equal. Without `rng` the click is on the deepest pixel of
    the largest 8-connected error region: the one with the greatest Euclidean distance to the region's edge (the image
    border is an edge), and among equally deep pixels the one nearest to their centroid. Regions longer than 96 pixels
    are measured on a grid of 2 x 2 (3 x 3, ...) blocks. With `rng` the point is drawn uniformly from the inner part of
    the region. Missed and spurious pixels never form one region. ValueError if the shapes differ.
    """
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(f"expected two (H, W) masks of one shape, not {prediction.shape} and {target.shape}")
    missed, size_missed, corner_missed = _largest_component(target & ~prediction)
    spurious, size_spurious, corner_spurious = _largest_component(prediction & ~target)
    if size_missed == 0 and size_spurious == 0:
        return None
    positive = size_missed >= size_spurious
    region, corner = (missed, corner_missed) if positive else (spurious, corner_spurious)
    row, column = _inner_point(region, rng)
    return float(corner[0] + row), float(corner[1] + column), positive


def next_clicks(
    predictions: BoolArray, targets: BoolArray, *, rng: np.random.Generator | None = None, workers: int = 2
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`next_click` for N masks (N, H, W) on `workers` threads.

    Returns points (N, 2) and labels (N,): 1 positive, 0 negative, -1 (at point (-1, -1)) if there is no error. With
    `rng` each row has its own generator, so the result does not depend on the threads' timing.
    """
    if predictions.ndim != 3 or predictions.shape != targets.shape:
        raise ValueError(f"expected masks (N, H, W) of one shape, not {predictions.shape} and {targets.shape}")
    count = len(predictions)
    rngs = [None] * count if rng is None else [np.random.default_rng(seed) for seed in rng.integers(2**62, size=count)]
    clicks = list(_pool(workers).map(_click_with, predictions, targets, rngs))
    points = np.full((count, 2), -1, dtype=np.float32)
    labels = np.full(count, -1, dtype=np.int64)
    for index, click in enumerate(clicks):
        if click is not None:
            points[index], labels[index] = click[:2], int(click[2])
    return points, labels


def simulate_scribble(region: BoolArray, rng: np.random.Generator) -> BoolArray:
    """A free-hand stroke in `region` (H, W): a smooth curve, 1 or 3 pixels wide, along the region's longer axis.

    The stroke lies inside the region and is never empty. ValueError for an empty region.
    """
    region = np.asarray(region, dtype=bool)
    component, size, corner = _largest_component(region)
    if size == 0:
        raise ValueError("the region is empty; expected at least one pixel to draw a scribble in")
    depth = _depth(component)
    inner = np.argwhere(depth >= max(1.0, _SCRIBBLE_DEPTH * depth.max()))
    nodes = inner[rng.integers(len(inner), size=_SCRIBBLE_NODES)].astype(np.float64)
    curve = _smooth_curve(nodes[np.argsort(_along_main_axis(nodes))])
    stroke = np.zeros(component.shape, dtype=bool)
    rows, columns = np.rint(curve).astype(np.int64).T
    stroke[rows, columns] = True
    if rng.random() < 0.5:
        stroke = ndimage.binary_dilation(stroke, EIGHT_CONNECTED)
    stroke, length, inset = _largest_component(stroke & component)
    if length == 0:  # the curve left a bent region at once: a dot is still a valid stroke
        stroke, inset = np.ones((1, 1), dtype=bool), (int(inner[0, 0]), int(inner[0, 1]))
    result = np.zeros(region.shape, dtype=bool)
    top, left = corner[0] + inset[0], corner[1] + inset[1]
    result[top : top + stroke.shape[0], left : left + stroke.shape[1]] = stroke
    return result


def _click_with(
    prediction: BoolArray, target: BoolArray, rng: np.random.Generator | None
) -> tuple[float, float, bool] | None:
    return next_click(prediction, target, rng=rng)


@lru_cache(maxsize=4)
def _pool(workers: int) -> ThreadPoolExecutor:
    """One pool for each thread count, for the life of the process: starting threads costs more than a click."""
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    return ThreadPoolExecutor(workers, thread_name_prefix="clicks")


def _largest_component(mask: BoolArray) -> tuple[BoolArray, int, tuple[int, int]]:
    """The largest 8-connected component: the crop to its box, its size in pixels, and the crop's (row, column)."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, 0), dtype=bool), 0, (0, 0)
    component = largest_component(mask[box], EIGHT_CONNECTED)
    inner = bounding_box(component)
    assert inner is not None  # the mask is not empty
    crop = component[inner]
    row, column = (outside.start + inside.start for outside, inside in zip(box, inner, strict=True))
    return crop, int(np.count_nonzero(crop)), (row, column)


def _depth(region: BoolArray) -> NDArray[np.float64]:
    """Euclidean distance of every pixel to the nearest pixel outside `region`; beyond the array is outside."""
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(region, 1))
    return distance[1:-1, 1:-1]


def _inner_point(region: BoolArray, rng: np.random.Generator | None) -> tuple[int, int]:
    """The deepest pixel of a region, or with `rng` a random pixel of its inner part."""
    step = -(-max(region.shape) // _LARGEST_SIDE)
    coarse = _blocks_inside(region, step)
    if not coarse.any():  # thinner than one block: only the full grid shows it
        step, coarse = 1, region
    depth = _depth(coarse)
    deepest = depth.max()
    if rng is not None:
        inner = np.argwhere(depth >= _JITTER_DEPTH * deepest)
        row, column = inner[rng.integers(len(inner))]
    else:
        inner = np.argwhere(depth == deepest)
        row, column = inner[((inner - inner.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row) * step + step // 2, int(column) * step + step // 2


def _blocks_inside(region: BoolArray, step: int) -> BoolArray:
    """Which step x step blocks lie inside `region`; incomplete blocks at the far edges do not count."""
    if step == 1:
        return region
    rows, columns = region.shape[0] // step, region.shape[1] // step
    blocks = region[: rows * step, : columns * step].reshape(rows, step, columns, step)
    inside: BoolArray = blocks.all(axis=(1, 3))
    return inside


def _along_main_axis(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Position of each node (n, 2) on the axis of their greatest spread."""
    centred = nodes - nodes.mean(axis=0)
    position: NDArray[np.float64] = centred @ np.linalg.svd(centred)[2][0]
    return position


def _smooth_curve(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth path (m, 2) through the nodes (n, 2), sampled at least twice a pixel; it stays in their hull."""
    lengths = np.hypot(*np.diff(nodes, axis=0).T)
    along = np.concatenate(([0.0], np.cumsum(lengths)))
    samples = np.linspace(0.0, along[-1], max(2, int(2 * along[-1]) + 1))
    smooth = partial(ndimage.gaussian_filter1d, sigma=max(1.0, len(samples) / 12), mode="nearest")
    return np.stack([smooth(np.interp(samples, along, nodes[:, axis])) for axis in (0, 1)], axis=1)
