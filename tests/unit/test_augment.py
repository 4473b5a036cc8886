# SPDX-License-Identifier: Apache-2.0
"""Augmentation: masks stay on their images, padding stays zero, strength is what is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.augment import Augmentation, augment_batch

NONE = Augmentation.none()
GEOMETRY = Augmentation(
    gamma=1.0, contrast=1.0, brightness=0.0, tint=0.0, grey=0.0, invert=0.0, blur=0.0, noise=0.0, noise_level=0.0
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def discs(n: int, size: int, radius: float = 0.2) -> Tensor:
    """Masks (n, 1, size, size) with an ellipse a little off the centre."""
    axis = (torch.arange(size) + 0.5) / size
    row, column = axis[:, None] - 0.45, axis[None, :] - 0.55
    return ((row**2 + (column / 1.5) ** 2) < radius**2).float().expand(n, 1, size, size)


def test_no_augmentation_changes_nothing() -> None:
    images, masks = torch.rand(3, 3, 64, 64), discs(3, 64)
    same_images, same_masks = augment_batch(images, masks, generator(), size=64, settings=NONE)
    torch.testing.assert_close(same_images, images, atol=1e-5, rtol=0)
    assert torch.equal(same_masks, masks)


def test_a_smaller_size_averages_pixels() -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    small, _ = augment_batch(images, discs(2, 64), generator(), size=16, settings=NONE)
    torch.testing.assert_close(small, F.avg_pool2d(images / 255, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "axes"), [({"horizontal_flip": 1.0}, (3,)), ({"vertical_flip": 1.0}, (2,)), ({"quarter_turn": 1.0}, ())]
)
def test_flips_and_turns_are_exact(change: dict[str, float], axes: tuple[int, ...]) -> None:
    images, masks = torch.rand(2, 3, 32, 32), discs(2, 32)
    turned, turned_masks = augment_batch(images, masks, generator(), size=32, settings=replace(NONE, **change))
    expected = [array.flip(axes) if axes else torch.rot90(array, -1, (2, 3)) for array in (images, masks)]
    torch.testing.assert_close(turned, expected[0], atol=1e-4, rtol=0)
    assert torch.equal(turned_masks, expected[1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([32, 48, 64, 96]), rows=st.integers(20, 64))
def test_masks_stay_on_their_images(seed: int, size: int, rows: int) -> None:
    content = torch.tensor([[rows, 64], [64, rows], [64, 64]])
    masks = discs(3, 64) * 1.0
    for mask, (height, width) in zip(masks, content.tolist(), strict=True):
        mask[:, height:], mask[..., width:] = 0, 0
    images, changed = augment_batch(
        masks.repeat(1, 3, 1, 1), masks, generator(seed), size=size, content=content, settings=GEOMETRY
    )
    # the one-pixel rim of what is image may be cut from the image, not from the mask
    assert ((images[:, :1] > 0.5).float() != changed).float().mean() < 0.01
    assert changed.flatten(1).any(dim=1).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), as_bytes=st.booleans())
def test_values_stay_in_range_and_padding_stays_zero(seed: int, as_bytes: bool) -> None:
    images = torch.rand(4, 3, 64, 64, generator=generator(seed))
    images[:, :, 40:] = 0
    content = torch.tensor([[40, 64]]).expand(4, 2)
    strong = replace(Augmentation(noise=1.0, invert=1.0, blur=1.0, brightness=0.5), placement=0.0, rotation=0.0)
    still = strong.without_geometry()
    given_images = (images * 255).to(torch.uint8) if as_bytes else images
    changed, masks = augment_batch(
        given_images, discs(4, 64), generator(seed), size=64, content=content, settings=still
    )
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 1
    assert not changed[:, :, 40:].any() and changed[:, :, :40].any()
    assert torch.equal(masks, discs(4, 64))


def test_a_whole_image_that_fits_is_placed_whole() -> None:
    content = torch.tensor([[32, 64]]).expand(50, 2)
    images = torch.zeros(50, 3, 64, 64)
    images[:, :, :32] = 1
    moved, _ = augment_batch(
        images, images[:, :1], generator(), size=64, content=content, settings=replace(NONE, placement=1.0)
    )
    assert moved[:, 0].sum(dim=(1, 2)).numpy() == pytest.approx(32 * 64, rel=0.03)
    top = moved[:, 0, :, 0].argmax(dim=1)
    assert top.min() < 6 and top.max() > 26


def test_zoom_is_bounded_and_spread() -> None:
    masks = discs(200, 64, radius=0.1)
    zoomed = replace(NONE, zoom=1.4)
    _, changed = augment_batch(masks.repeat(1, 3, 1, 1), masks, generator(), size=64, settings=zoomed)
    factor = (changed.sum(dim=(1, 2, 3)) / masks[0].sum()).sqrt()
    assert 0.65 < factor.min() < 0.78 and 1.3 < factor.max() < 1.48
    assert factor.log().mean().abs() < 0.05


def test_grey_images_stay_grey_and_colour_is_dropped_when_asked() -> None:
    grey = torch.rand(6, 1, 32, 32).repeat(1, 3, 1, 1)
    changed, _ = augment_batch(grey, discs(6, 32), generator(), size=32)
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])
    dropped, _ = augment_batch(
        torch.rand(6, 3, 32, 32), discs(6, 32), generator(), size=32, settings=replace(NONE, grey=1.0)
    )
    assert torch.equal(dropped[:, 0], dropped[:, 2])


def test_inversion_and_brightness_are_as_asked() -> None:
    images = torch.rand(4, 3, 32, 32)
    inverted, _ = augment_batch(images, discs(4, 32), generator(), size=32, settings=replace(NONE, invert=1.0))
    torch.testing.assert_close(inverted, 1 - images, atol=1e-5, rtol=0)
    half = torch.full((64, 3, 32, 32), 0.5)
    brighter, _ = augment_batch(half, discs(64, 32), generator(), size=32, settings=replace(NONE, brightness=0.2))
    change = brighter[:, 0, 5, 5] - 0.5
    assert change.abs().max() <= 0.2 + 1e-5 and change.min() < -0.1 and change.max() > 0.1


def test_reproducible_by_generator_and_input_untouched() -> None:
    images, masks = torch.rand(4, 3, 64, 64), discs(4, 64)
    before = images.clone()
    one, other = (augment_batch(images, masks, generator(5), size=48) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(one[0], augment_batch(images, masks, generator(6), size=48)[0])
    assert torch.equal(images, before)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images \(n, 3, S, S\)"):
        augment_batch(torch.rand(2, 1, 32, 32), discs(2, 32), generator(), size=32)
    with pytest.raises(ValueError, match=r"Augmentation.zoom must lie in \[1, inf\], got 0.5"):
        Augmentation(zoom=0.5)
    with pytest.raises(ValueError, match=r"Augmentation.blur must lie in \[0, 1\], got 2"):
        Augmentation(blur=2)
