# SPDX-License-Identifier: Apache-2.0
"""Thin structures are found, bright and dark ones; edges of large things are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.data.ridges import ridges


def lines() -> NDArray[np.bool_]:
    """Two lines across the image, three pixels wide."""
    found = np.zeros((128, 128), bool)
    found[np.arange(128), np.arange(128)] = True
    found[40, 10:120] = True
    return ndimage.binary_dilation(found, np.ones((3, 3)))


def drawn(grey: NDArray[np.float64], times: int = 24) -> list[NDArray[np.bool_]]:
    return [ridges(grey.astype(np.float32), np.random.default_rng(seed)) for seed in range(times)]


@pytest.mark.parametrize("contrast", [40.0, -40.0])
def test_lines_are_found(contrast: float) -> None:
    grey = 100 + contrast * lines() + np.random.default_rng(0).normal(0, 2, (128, 128))
    near = ndimage.binary_dilation(lines(), iterations=3)
    good = [found for found in drawn(grey) if found[near].sum() > 0.9 * found.sum() and found[lines()].mean() > 0.6]
    assert len(good) >= 6  # bright or dark by chance, at a width that may not fit


def test_edges_of_large_things_are_not_lines() -> None:
    rows, columns = np.mgrid[:128, :128]
    disc = ndimage.gaussian_filter(100.0 * (np.hypot(rows - 60, columns - 64) < 40), 0.7)
    with_line = disc + 60 * ndimage.gaussian_filter((columns == 118).astype(float), 0.7)
    for found in drawn(with_line):
        edge = found & (np.abs(np.hypot(rows - 60, columns - 64) - 40) < 2)
        assert edge.sum() < 0.15 * 2 * np.pi * 40


def test_flat_images_hold_none() -> None:
    assert not any(found.any() for found in drawn(np.full((64, 48), 7.0), 4))
