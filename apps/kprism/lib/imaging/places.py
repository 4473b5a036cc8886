# SPDX-License-Identifier: Apache-2.0
"""Whether a mask lies on the grid of an image, where the headers of both may state several places.

A NIfTI header has room for two affines, and readers choose differently: a mask that 3D Slicer writes lies where ITK has
read the image. Affines map (i, j, k, 1) to millimetres in RAS+.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

Affine = NDArray[np.float64]

MAX_OFFSET = 0.1
"""A mask may lie this fraction of a voxel beside its image, because files round their affines."""


def on_places(
    mask: NDArray[Any], stated: Sequence[Affine], image: Sequence[Affine], grid: tuple[int, int, int]
) -> NDArray[Any] | None:
    """The mask (i, j, k) as an array on the image's `grid`, if one of its places is one of the image's; else None.

    Where the voxels of both lie in the same order at a place that both state, they are taken as they are. Otherwise the
    axes of the mask are brought into the order and direction of the image's.
    """
    pairs = list(product(image, stated))
    if mask.shape == grid and any(_is_near(own, other, grid) for own, other in pairs):
        return mask
    for own, other in pairs:
        array, affine = reordered(mask, other, own)
        if array.shape == grid and _is_near(own, affine, grid):
            return array
    return None


def reordered(mask: NDArray[Any], affine: Affine, like: Affine) -> tuple[NDArray[Any], Affine]:
    """A mask (i, j, k) and its affine with the axes in the order and direction of those of the affine `like`."""
    change = ornt_transform(io_orientation(affine), io_orientation(like))
    return apply_orientation(mask, change), affine @ inv_ornt_aff(change, mask.shape)


def _is_near(one: Affine, other: Affine, grid: tuple[int, int, int]) -> bool:
    """Whether two affines give the corners of a grid the same positions, but for what files round."""
    corners = np.array(list(product(*((0, side - 1) for side in grid), (1,))), np.float64)
    away = np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max()
    return bool(away <= MAX_OFFSET * np.linalg.norm(one[:3, :3], axis=0).min())
