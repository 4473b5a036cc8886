# SPDX-License-Identifier: Apache-2.0
"""The published augmentation: each change alone against a direct computation, and the chances of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from kprism_model.published.training.augmentation import BLUR_SIDES, Draw, augment

SIZE = 60


def picture(rows: int = SIZE, columns: int = SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """One noisy image at the top left of its canvas, a mask of a rectangle, and rows and columns of the image."""
    rng = np.random.default_rng(0)
    images, masks = np.zeros((1, 3, SIZE, SIZE), np.uint8), np.zeros((1, 1, SIZE, SIZE), np.uint8)
    images[0, :, :rows, :columns] = rng.integers(0, 256, (3, rows, columns))
    masks[0, 0, 10 : rows - 15, 5 : columns - 12] = 1
    return torch.from_numpy(images), torch.from_numpy(masks), torch.tensor([[rows, columns]])


def changed(draw: Draw, rows: int = SIZE, columns: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Image (3, SIZE, SIZE) and mask (SIZE, SIZE) after a draw."""
    images, masks, content = picture(rows, columns)
    image, mask = augment(images, masks, content, (draw,))
    assert image.dtype == mask.dtype == torch.float32 and set(mask.unique().tolist()) <= {0.0, 1.0}
    return image[0].numpy(), mask[0, 0].numpy()


@pytest.mark.parametrize(("rows", "columns"), [(60, 60), (60, 37), (41, 60), (33, 60)])
def test_a_draw_that_changes_nothing_gives_the_image_as_it_lies(rows: int, columns: int) -> None:
    images, masks, _ = picture(rows, columns)
    image, mask = changed(Draw(), rows, columns)
    np.testing.assert_allclose(image, images[0].numpy() / 255, atol=2e-5)
    np.testing.assert_array_equal(mask, masks[0, 0].numpy())


@pytest.mark.parametrize(("rows", "columns"), [(60, 60), (60, 37), (41, 60)])
def test_a_flip_turns_the_image_and_leaves_its_padding_where_it_is(rows: int, columns: int) -> None:
    images, masks, _ = picture(rows, columns)
    image, mask = changed(Draw(flip=True), rows, columns)
    np.testing.assert_allclose(image[:, :, :columns], images[0, :, :, :columns].numpy()[..., ::-1] / 255, atol=2e-5)
    np.testing.assert_array_equal(mask[:, :columns], masks[0, 0].numpy()[:, :columns][:, ::-1])
    assert image[:, :, columns:].max(initial=0) < 1e-5 and not mask[:, columns:].any()


@pytest.mark.parametrize("degrees", [-45.0, 10.0, 45.0])
@pytest.mark.parametrize("scale", [0.95, 1.05])
@pytest.mark.parametrize("shift", [(0.05, -0.05), (0.0, 0.0)])
def test_shift_scale_and_rotation_are_about_the_middle(
    degrees: float, scale: float, shift: tuple[float, float]
) -> None:
    """Against SciPy: where a pixel (row, column) of the result comes from, with zeros from outside."""
    image, mask = changed(Draw(angle=math.radians(degrees), scale=scale, shift=shift))
    angle, middle = math.radians(degrees), (SIZE - 1) / 2
    back = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale
    offset = middle - back @ (middle + SIZE * np.array([shift[1], shift[0]]))
    images, masks, _ = picture()
    for channel in range(3):
        expected = ndimage.affine_transform(
            images[0, channel].numpy() / 255, back, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(image[channel], expected, atol=1e-4)
    expected = ndimage.affine_transform(masks[0, 0].numpy().astype(float), back, offset, order=1, mode="grid-constant")
    assert np.mean(mask != (expected > 0.5)) < 0.002


def test_a_moved_image_lies_in_the_middle_of_its_canvas() -> None:
    """38 columns of 60: 11 are left free at the left."""
    images, masks, _ = picture(60, 38)
    image, mask = changed(Draw(scale=1 + 1e-7), 60, 38)
    np.testing.assert_allclose(image[:, :, 11:49], images[0, :, :, :38].numpy() / 255, atol=1e-4)
    np.testing.assert_array_equal(mask[:, 11:49], masks[0, 0].numpy()[:, :38])
    assert np.abs(image[:, :, :11]).max() < 1e-3 and np.abs(image[:, :, 49:]).max() < 1e-3


def test_the_cells_of_a_distorted_grid_are_stretched() -> None:
    """Columns: of the first cell (12 pixels) every second pixel is seen, of the second each twice."""
    image, _ = changed(Draw(cells=((2.0, 0.5, 1.0, 1.0, 1.0), (1.0,) * 5)))
    images, _, _ = picture()
    source = images[0].numpy() / 255
    place = 2 * (np.arange(12) + 0.5) - 0.5  # of the first twelve columns in the source
    low = np.floor(place).astype(int)
    expected = (source[:, :, low] + source[:, :, low + 1]) / 2
    np.testing.assert_allclose(image[:, :, :12], expected, atol=1e-4)
    np.testing.assert_allclose(image[:, :, 24:54], (source[:, :, 30:60]), atol=1e-4)
    assert np.abs(image[:, :, 55:]).max() < 1e-6  # beyond the image


@pytest.mark.parametrize("gain", [0.8, 1.2])
@pytest.mark.parametrize("offset", [-0.2, 0.13])
def test_brightness_and_contrast(gain: float, offset: float) -> None:
    image, mask = changed(Draw(gain=gain, offset=offset))
    images, masks, _ = picture()
    np.testing.assert_allclose(image, np.clip(images[0].numpy() / 255 * gain + offset, 0, 1), atol=1e-4)
    np.testing.assert_array_equal(mask, masks[0, 0].numpy())


@pytest.mark.parametrize("side", BLUR_SIDES)
def test_blur_is_gaussian(side: int) -> None:
    image, mask = changed(Draw(blur=side))
    images, masks, _ = picture()
    sigma = 0.3 * ((side - 1) / 2 - 1) + 0.8
    for channel in range(3):
        expected = ndimage.gaussian_filter(images[0, channel].numpy() / 255, sigma, mode="mirror", radius=side // 2)
        np.testing.assert_allclose(image[channel], expected, atol=1e-4)
    np.testing.assert_array_equal(mask, masks[0, 0].numpy())


def test_noise_has_its_deviation_and_its_seed() -> None:
    images, masks, content = picture()
    images = torch.full_like(images, 128)
    levels = (0.02, 0.01)
    noisy = [augment(images, masks, content, (Draw(noise=level, noise_seed=7),))[0] - 128 / 255 for level in levels]
    assert [float(noise.std()) for noise in noisy] == pytest.approx(levels, rel=0.03)
    torch.testing.assert_close(noisy[0] / 2, noisy[1], atol=1e-5, rtol=0)
    other = augment(images, masks, content, (Draw(noise=0.02, noise_seed=8),))[0] - 128 / 255
    assert abs(float(torch.corrcoef(torch.stack([noisy[0].flatten(), other.flatten()]))[0, 1])) < 0.05


def test_an_object_that_would_be_lost_is_only_flipped() -> None:
    """One in a corner, another in the middle: the first image stays, the second is turned."""
    images, masks, content = (part.repeat(2, *(1,) * (part.ndim - 1)) for part in picture())
    masks.zero_()
    masks[0, :, :4, :4] = 1
    masks[1, :, 28:34, 28:34] = 1
    draw = Draw(flip=True, angle=math.radians(45), noise=0.01, noise_seed=1)
    changed_images, changed_masks = augment(images, masks, content, (draw, draw))
    alone = augment(images[:1], masks[:1], content[:1], (draw.only_flipped(),))
    assert torch.equal(changed_images[:1], alone[0]) and torch.equal(changed_masks[:1], masks[:1].flip(3).float())
    assert 30 < float(changed_masks[1].sum()) < 42 and not torch.equal(changed_masks[1], masks[1].float())


def test_an_image_is_changed_alike_in_any_batch() -> None:
    rng = np.random.default_rng(3)
    draws = tuple(Draw.random(rng) for _ in range(6))
    images, masks, content = (part.repeat(6, *(1,) * (part.ndim - 1)) for part in picture(60, 41))
    together = augment(images, masks, content, draws)
    for number in range(6):
        alone = augment(images[:1], masks[:1], content[:1], draws[number : number + 1])
        assert all(torch.equal(part[number], own[0]) for part, own in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    ("applies", "chance"),
    [
        (lambda draw: draw.flip, 0.5),
        (lambda draw: draw.angle != 0, 0.3),
        (lambda draw: draw.gain != 1, 0.4),
        (lambda draw: draw.blur > 0, 0.3),
        (lambda draw: draw.noise > 0, 0.3),
        (lambda draw: draw.cells != Draw().cells, 0.3),
    ],
    ids=["flip", "move", "brighten", "blur", "noise", "distort"],
)
def test_changes_have_the_published_chances(applies: Callable[[Draw], bool], chance: float) -> None:
    draws = [Draw.random(np.random.default_rng([1, number])) for number in range(3000)]
    assert np.mean([applies(draw) for draw in draws]) == pytest.approx(chance, abs=4 * math.sqrt(chance / 4 / 3000) * 2)


def test_strengths_are_the_published_ones() -> None:
    draws = [Draw.random(np.random.default_rng([2, number])) for number in range(3000)]
    found = np.array([(d.angle, d.scale - 1, *d.shift, d.gain - 1, d.offset) for d in draws])
    limits = np.array([math.radians(45), 0.05, 0.05, 0.05, 0.2, 0.2])
    assert (np.abs(found).max(0) <= limits).all() and (np.abs(found).max(0) > 0.97 * limits).all()
    noise = np.array([draw.noise for draw in draws if draw.noise]) * 255
    assert math.sqrt(10) <= noise.min() < 3.3 and 7 < noise.max() <= math.sqrt(50)
    cells = np.array([draw.cells for draw in draws])
    assert 0.7 <= cells.min() < 0.71 and 1.29 < cells.max() <= 1.3
    assert {draw.blur for draw in draws} == {0, *BLUR_SIDES}
