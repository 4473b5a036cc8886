# SPDX-License-Identifier: Apache-2.0
"""Objects made of regions: what a person could outline, of every kind, and never the padding or a speck."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.data.region_maps import region_map
from kprism_model.data.region_objects import ObjectSettings, draw_object
from kprism_model.data.targets import MINIMUM_PIXELS

SIZE, ROWS = 128, 104
KINDS = ("region", "merged", "thin", "fragment", "union")
DISCS = {(30, 30): 14, (30, 90): 14, (75, 35): 14, (76, 96): 11}


def disc(row: int, column: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.hypot(rows - row, columns - column) < radius


def vessel() -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (np.abs(rows - 52 - 4 * np.sin(columns / 10)) < 1.5) & (columns > 8) & (columns < 120)


def image() -> NDArray[np.uint8]:
    """Bright discs and a dark vessel on noise; the lowest rows are padding."""
    values = np.random.default_rng(0).normal(90, 4, (SIZE, SIZE))
    for (row, column), radius in DISCS.items():
        values[disc(row, column, radius)] += 90
    values[vessel()] -= 60
    values = ndimage.gaussian_filter(values, 0.6)
    values[ROWS:] = 0
    return np.clip(values, 0, 255).astype(np.uint8)[..., None]


def regions(picture: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint16]:
    return region_map(picture, (ROWS, SIZE), np.random.default_rng(seed))


def drawn(kind: str | None = None, times: int = 40) -> list[NDArray[np.bool_]]:
    """Objects of one kind, or of all."""
    settings = ObjectSettings(**{name: float(name == kind) for name in KINDS}) if kind else ObjectSettings()
    picture = image()
    found = [draw_object(picture, regions(picture, n % 4), np.random.default_rng(n), settings) for n in range(times)]
    return [mask for mask in found if mask is not None]


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_objects_have_a_sensible_size_and_leave_the_padding_alone(kind: str | None) -> None:
    found = drawn(kind)
    assert len(found) >= 36
    for mask in found:
        assert mask.dtype == bool and mask.shape == (SIZE, SIZE) and not mask[ROWS:].any()
        assert MINIMUM_PIXELS <= mask.sum() <= 0.6 * ROWS * SIZE


@pytest.mark.parametrize("kind", ["region", "merged"])
def test_structures_that_stand_out_are_found_whole(kind: str) -> None:
    best = [max(overlap(mask, disc(*place, radius)) for place, radius in DISCS.items()) for mask in drawn(kind)]
    assert sum(value > 0.9 for value in best) >= 10


def test_most_objects_are_one_smooth_piece() -> None:
    for mask in drawn("merged"):
        assert ndimage.label(mask)[1] == 1
        assert ndimage.binary_opening(mask, np.ones((2, 2))).sum() > 0.65 * mask.sum()


def test_unions_are_of_what_is_alike_and_apart() -> None:
    """The discs are alike, the vessel and what lies between are not."""
    found = drawn("union")
    discs = np.any([disc(*place, radius + 2) for place, radius in DISCS.items()], axis=0)
    several = [mask for mask in found if ndimage.label(mask)[1] >= 2]
    assert len(several) > 0.7 * len(found)
    of_discs = [mask for mask in several if (mask & discs).sum() > 0.5 * mask.sum()]
    pure = [mask for mask in of_discs if (mask & discs).sum() > 0.98 * mask.sum()]
    assert len(of_discs) >= 10 and len(pure) >= 0.9 * len(of_discs)


def test_thin_structures_are_found() -> None:
    near = ndimage.binary_dilation(vessel(), iterations=2)
    found = [mask for mask in drawn("thin") if mask[near].sum() > 0.8 * mask.sum() and mask[vessel()].mean() > 0.6]
    assert len(found) >= 6


def test_fragments_are_cut_straight() -> None:
    halves = [
        mask
        for mask in drawn("fragment")
        for place, radius in DISCS.items()
        if (mask & disc(*place, radius + 1)).sum() > 0.98 * mask.sum()
        and 0.25 < overlap(mask, disc(*place, radius)) < 0.85
    ]
    assert len(halves) >= 5


def test_the_same_numbers_give_the_same_object() -> None:
    picture = image()
    one, other = (draw_object(picture, regions(picture), np.random.default_rng(5)) for _ in range(2))
    assert one is not None and other is not None
    np.testing.assert_array_equal(one, other)


def test_colour_images_and_slices_without_padding_serve_too() -> None:
    picture = np.random.default_rng(1).permutation(np.repeat(image()[:ROWS, :ROWS], 3, axis=2), axis=2)
    found = region_map(picture, (ROWS, ROWS), np.random.default_rng(0))
    assert draw_object(picture, found, np.random.default_rng(0)) is not None


def test_empty_slices_show_no_object() -> None:
    empty = np.zeros((SIZE, SIZE, 1), np.uint8)
    assert draw_object(empty, regions(empty), np.random.default_rng(0)) is None


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ObjectSettings\.union must be 0 or more, got -1"):
        ObjectSettings(union=-1.0)
    with pytest.raises(ValueError, match="must not all be 0"):
        ObjectSettings(**dict.fromkeys(KINDS, 0.0))
