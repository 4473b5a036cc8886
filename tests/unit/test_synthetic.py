# SPDX-License-Identifier: Apache-2.0
"""Synthetic tasks: legal values, one structure a group, reproducible, varied."""

from __future__ import annotations

import pytest
import torch

from kprism_model.data.synthetic import SyntheticTasks, synthetic_group


def group(seed: int, count: int = 4, tasks: SyntheticTasks | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return synthetic_group(count, 64, torch.Generator().manual_seed(seed), tasks)


def test_shapes_and_values() -> None:
    images, masks = group(0)
    assert images.shape == (4, 3, 64, 64) and masks.shape == (4, 1, 64, 64)
    assert images.min() >= 0 and images.max() <= 1 and images.dtype == masks.dtype == torch.float32
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_the_generator_alone_decides() -> None:
    assert all(torch.equal(one, other) for one, other in zip(group(3), group(3), strict=True))
    assert not torch.equal(group(3)[1], group(4)[1])


def test_the_structure_has_one_place_in_the_palette() -> None:
    """In the images of a group the structure is painted alike; its shape is each image's own."""
    images, masks = group(1, tasks=SyntheticTasks(texture=0.0))
    colours = torch.stack([image[:, mask[0] > 0].median(1).values for image, mask in zip(images, masks, strict=True)])
    assert (colours.amax(0) - colours.amin(0)).max() < 0.3  # lighting differs
    overlaps = [(masks[0] * other).sum() / torch.maximum(masks[0], other).sum() for other in masks[1:]]
    assert max(overlaps) < 0.9


def test_sizes_are_sensible_and_vary() -> None:
    shares = [float(group(seed)[1].mean()) for seed in range(40)]
    assert sum(0.004 <= share <= 0.6 for share in shares) >= 36
    assert min(shares) < 0.1 and max(shares) > 0.25


@pytest.mark.parametrize(("colour", "grey"), [(0.0, True), (1.0, False)])
def test_grey_and_colour(colour: float, grey: bool) -> None:
    images, _ = group(2, tasks=SyntheticTasks(colour=colour))
    assert torch.equal(images[:, 0], images[:, 1]) == grey
