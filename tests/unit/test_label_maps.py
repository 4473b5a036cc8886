# SPDX-License-Identifier: Apache-2.0
"""The values in an index map, found plane by plane."""

from __future__ import annotations

import numpy as np
import pytest

from kprism_model.volumes.slice_map import SliceMap
from lib.imaging.label_maps import renumbered, values_by_plane, values_in
from lib.imaging.medical_image import planes_of

SHAPES = [(1, 1, 1), (1, 5, 2), (40, 30, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("values", [[0], [0, 1], [7], [255, 0, 128], range(256)])
def test_noise_and_smooth_shapes_have_the_values_that_numpy_finds(
    values: list[int], order: str, shape: tuple[int, int, int]
) -> None:
    noise = np.random.default_rng(0).choice(np.array(values, np.uint8), shape).copy(order=order)
    smooth = np.full(shape, values[0], np.uint8, order=order)
    smooth[shape[0] // 2, -1, -1] = values[-1]
    for labels in (noise, smooth):
        assert values_in(labels) == set(np.unique(labels).tolist()) - {0}
        for k, found in enumerate(values_by_plane(labels)):
            assert found == set(np.unique(labels[:, :, k]).tolist()) - {0}


def test_values_are_renumbered_by_a_table() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (5, 4, 3)).astype(np.uint8)
    table = np.zeros(256, np.uint8)
    table[1:4] = 9, 0, 200
    sparse = SliceMap.of(labels, planes_of(labels.shape))
    np.testing.assert_array_equal(renumbered(sparse, table).volume(), table[labels])
    assert values_in(sparse) == {1, 2, 3}
