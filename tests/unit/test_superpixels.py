# SPDX-License-Identifier: Apache-2.0
"""Superpixels: whole, connected, large enough, and their borders where the image has edges."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.data import superpixels as module
from kprism_model.data.superpixels import neighbours, superpixels

SIZE = 96


def cells(seed: int, count: int = 12) -> NDArray[np.int64]:
    """A true segmentation: the cells around random points."""
    points = np.random.default_rng(seed).uniform(0, SIZE, (count, 2))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.hypot(rows[..., None] - points[:, 0], columns[..., None] - points[:, 1]).argmin(axis=2)


def noisy(values: NDArray[np.float64], seed: int = 0, noise: float = 4.0) -> NDArray[np.uint8]:
    drawn = np.random.default_rng(seed).normal(0, noise, values.shape)
    return np.clip(values + drawn, 0, 255).round().astype(np.uint8)


def texture(seed: int = 3) -> NDArray[np.uint8]:
    """Smooth noise of three channels, with structure at several sizes."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE, 3)), (s, s, 0)) * s for s in (1, 3, 8)]
    values = sum(layers)
    return ((values - values.min()) / np.ptp(values) * 255).astype(np.uint8)


@pytest.mark.parametrize("image", [texture(), texture()[..., 0], texture()[:, :37], noisy(np.full((SIZE, SIZE), 90.0))])
@pytest.mark.parametrize("minimum_size", [1, 25, 150])
def test_regions_cover_the_image_in_connected_pieces(image: NDArray[np.uint8], minimum_size: int) -> None:
    regions = superpixels(image, scale=100, sigma=0.8, minimum_size=minimum_size)
    assert regions.shape == image.shape[:2] and regions.dtype == np.int32
    sizes = np.bincount(regions.ravel())
    assert sizes.min() >= minimum_size and sizes.sum() == regions.size  # numbered without gaps
    for number in range(len(sizes)):
        assert ndimage.label(regions == number)[1] == 1


@pytest.mark.parametrize("seed", range(3))
def test_borders_lie_on_the_edges_of_the_image(seed: int) -> None:
    true = cells(seed)
    levels = np.random.default_rng(seed).permutation(np.linspace(20, 235, true.max() + 1))
    regions = superpixels(noisy(levels[true], seed, 2.0), scale=400, sigma=0.5, minimum_size=20)
    overlap = np.zeros((regions.max() + 1, true.max() + 1))
    np.add.at(overlap, (regions.ravel(), true.ravel()), 1)
    assert overlap.max(axis=1).sum() / true.size > 0.97  # no region reaches over an edge
    assert overlap.max(axis=0).sum() / true.size > 0.85  # and none is needlessly split


def test_colours_of_the_same_brightness_are_told_apart() -> None:
    image = np.full((40, 40, 3), 100, np.uint8)
    image[:, 20:] = (160, 40, 100)
    regions = superpixels(image, scale=100, sigma=0.0, minimum_size=10)
    np.testing.assert_array_equal(regions, np.arange(40)[None].repeat(40, 0) >= 20)


def test_larger_scales_give_fewer_regions() -> None:
    counts = [superpixels(texture(), scale=scale, sigma=0.8, minimum_size=5).max() for scale in (20, 80, 320, 1280)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 4 * counts[-1]


def test_the_same_image_gives_the_same_regions() -> None:
    one, other = (superpixels(texture(), scale=200, sigma=1, minimum_size=20) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_images_without_edges_are_one_region() -> None:
    for shape in ((1, 1), (1, 30), (30, 1), (50, 40, 3)):
        assert not superpixels(np.full(shape, 7, np.uint8), scale=1, sigma=1, minimum_size=1).any()


@pytest.mark.parametrize("scale", [5.0, 60.0, 400.0])
@pytest.mark.parametrize("minimum_size", [1, 12])
def test_the_criterion_is_that_of_the_paper(monkeypatch: pytest.MonkeyPatch, scale: float, minimum_size: int) -> None:
    """Without the rounds before it, the result is that of the paper's algorithm, written here as it stands there."""
    monkeypatch.setattr(module, "_BORUVKA_ROUNDS", 0)
    image = texture()[:24, :30, 0]
    regions = superpixels(image, scale=scale, sigma=0, minimum_size=minimum_size)
    expected = algorithm_of_the_paper(image, scale, minimum_size)
    pairs = np.unique(np.stack([regions.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == regions.max() + 1 == len(np.unique(expected))


def algorithm_of_the_paper(image: NDArray[np.uint8], scale: float, minimum_size: int) -> NDArray[np.int64]:
    values, first, second = image.astype(float).ravel(), *neighbours(*image.shape)
    component, internal = np.arange(image.size), np.zeros(image.size)
    weights = np.abs(values[first] - values[second])
    order = sorted(range(len(weights)), key=lambda edge: (weights[edge], first[edge], second[edge]))
    for small in (False, True):
        for edge in order:
            one, other = component[first[edge]], component[second[edge]]
            if one == other:
                continue
            sizes = [np.count_nonzero(component == number) for number in (one, other)]
            limit = min(internal[one] + scale / sizes[0], internal[other] + scale / sizes[1])
            if min(sizes) < minimum_size if small else weights[edge] <= limit:
                component[component == other] = one
                internal[one] = weights[edge]
    return component.reshape(image.shape)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a uint8 image .* got float64 \(4, 4\)"):
        superpixels(np.zeros((4, 4)), scale=1, sigma=1, minimum_size=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got uint8 \(0, 4\)"):
        superpixels(np.zeros((0, 4), np.uint8), scale=1, sigma=1, minimum_size=1)
    with pytest.raises(ValueError, match="minimum_size 1 or more, got 0, 1, 1"):
        superpixels(np.zeros((4, 4), np.uint8), scale=0, sigma=1, minimum_size=1)
