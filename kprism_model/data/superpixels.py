# SPDX-License-Identifier: Apache-2.0
"""Superpixels by the graph-based segmentation of Felzenszwalb and Huttenlocher (IJCV 59, 2004), for whole arrays.

The paper visits every edge between pixels, one by one. Here all pixels first join their most similar neighbour at once,
twice (Boruvka's algorithm). The paper's criterion then joins the resulting groups of about a dozen pixels: two regions
are merged unless the difference between them exceeds the largest difference inside one of them by more than `scale`
divided by its number of pixels. scikit-image has the paper's algorithm, but it is not among the requirements.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_BORUVKA_ROUNDS = 2  # without a criterion; with one more, groups cross the borders of small structures
_WEIGHT_STEPS = 1024  # steps of a grey level when weights become whole numbers


def superpixels(image: NDArray[np.uint8], *, scale: float, sigma: float, minimum_size: int) -> NDArray[np.int32]:
    """Divide an image into connected regions (each pixel has four neighbours), numbered from 0 without gaps.

    image: uint8 (H, W) or (H, W, C). `scale` in grey levels: a larger scale gives larger regions (the paper's k).
    `sigma`: standard deviation in pixels of the Gaussian that smooths the image first. `minimum_size` in pixels: a
    smaller region joins its most similar neighbour, if it has one. Returns int32 (H, W). ValueError for another type or
    shape, or for settings out of range.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        raise ValueError(f"expected a uint8 image (H, W) or (H, W, C), got {image.dtype} {image.shape}")
    if not scale > 0 or not sigma >= 0 or not minimum_size >= 1:
        raise ValueError(
            f"scale must be above 0, sigma 0 or more and minimum_size 1 or more, got {scale}, {sigma}, {minimum_size}"
        )
    height, width = image.shape[:2]
    colours = image.reshape(height, width, -1).astype(np.float32)
    if sigma > 0:
        colours = ndimage.gaussian_filter(colours, (sigma, sigma, 0), mode="nearest", truncate=3)
    graph = _Graph(*neighbours(height, width), colours.reshape(height * width, -1), np.ones(height * width))
    label = np.arange(height * width, dtype=np.int32)
    for _ in range(_BORUVKA_ROUNDS):
        groups = graph.lightest_joined()
        graph, label = graph.merged(groups), groups[label]
    regions: NDArray[np.int32] = _join_by_criterion(graph, scale, minimum_size)[label].reshape(height, width)
    return regions


@lru_cache(maxsize=8)
def neighbours(height: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Numbers of neighbouring pixels, two int32 (m,): first vertical pairs, then horizontal pairs."""
    pixels = np.arange(height * width, dtype=np.int32).reshape(height, width)
    first = np.concatenate([pixels[:-1].ravel(), pixels[:, :-1].ravel()])
    second = np.concatenate([pixels[1:].ravel(), pixels[:, 1:].ravel()])
    return first, second


class _Graph(NamedTuple):
    """Groups of pixels, with edges `first` - `second` (m,), mean `colours` (n, C) and `sizes` (n,) in pixels."""

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    colours: NDArray[np.float32]
    sizes: NDArray[np.float64]

    def weights(self) -> NDArray[np.float32]:
        """(m,) the Euclidean distance between the colours at both ends of each edge."""
        difference = self.colours[self.first] - self.colours[self.second]
        weights: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", difference, difference))
        return weights

    def lightest_joined(self) -> NDArray[np.int32]:
        """(n,) new numbers of the groups, after each has joined the neighbour at its lightest edge."""
        count, edges = len(self.sizes), len(self.first)
        if not edges:
            return np.arange(count, dtype=np.int32)
        # No two edges have the same weight, so the only cycles are between two groups that choose each other.
        unique = (self.weights() * _WEIGHT_STEPS).astype(np.int64) * edges + np.arange(edges)
        best = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(best, self.first, unique)
        np.minimum.at(best, self.second, unique)
        chosen = best % edges
        parent = self.first[chosen] + self.second[chosen] - np.arange(count, dtype=np.int32)
        mutual = np.flatnonzero(parent[parent] == np.arange(count))
        parent[mutual] = np.minimum(mutual, parent[mutual])
        return _roots_numbered(parent)

    def merged(self, groups: NDArray[np.int32]) -> _Graph:
        """The graph of the groups that the nodes belong to; it may contain an edge more than once."""
        first, second = groups[self.first], groups[self.second]
        between = first != second
        sizes = np.bincount(groups, self.sizes).astype(np.float64)
        sums = [np.bincount(groups, self.sizes * channel) for channel in self.colours.T]
        colours = (np.stack(sums, axis=1) / sizes[:, None]).astype(np.float32)
        return _Graph(first[between], second[between], colours, sizes)

    def unique(self) -> _Graph:
        """The graph with each edge once."""
        pairs = np.minimum(self.first, self.second).astype(np.int64) * len(self.sizes)
        pairs = np.unique(pairs + np.maximum(self.first, self.second))
        first, second = np.divmod(pairs, len(self.sizes))
        return _Graph(first.astype(np.int32), second.astype(np.int32), self.colours, self.sizes)


def _join_by_criterion(graph: _Graph, scale: float, minimum_size: int) -> NDArray[np.int32]:
    """(n,) the region of each group: the paper's algorithm 1, then small regions join their most similar neighbour."""
    graph = graph.unique()
    weights = graph.weights()
    order = np.argsort(weights, kind="stable")
    edges = list(zip(graph.first[order].tolist(), graph.second[order].tolist(), weights[order].tolist(), strict=True))
    parent = list(range(len(graph.sizes)))
    sizes = graph.sizes.tolist()
    limits = (scale / graph.sizes).tolist()

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for one, other, weight in edges:
        one, other = root(one), root(other)
        if one != other and weight <= limits[one] and weight <= limits[other]:
            parent[other] = one
            sizes[one] += sizes[other]
            limits[one] = weight + scale / sizes[one]
    for one, other, _ in edges:
        one, other = root(one), root(other)
        if one != other and min(sizes[one], sizes[other]) < minimum_size:
            parent[other] = one
            sizes[one] += sizes[other]
    return _roots_numbered(np.array(parent, dtype=np.int32))


def _roots_numbered(parent: NDArray[np.int32]) -> NDArray[np.int32]:
    """(n,) the number of each node's tree, from 0; `parent` (n,) leads from each node to its root."""
    while not np.array_equal(further := parent[parent], parent):
        parent = further
    roots = parent == np.arange(len(parent))
    numbers: NDArray[np.int32] = (np.cumsum(roots, dtype=np.int32) - 1)[parent]
    return numbers
