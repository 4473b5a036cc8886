# SPDX-License-Identifier: Apache-2.0
"""The way to the network's canvas and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kprism_model.preprocess import Geometry, resize, to_three_channels

SIDES = st.integers(1, 700)
NATIVES = st.sampled_from([64, 256, 512])


class TestThreeChannels:
    def test_every_legal_layout(self) -> None:
        image = np.arange(24.0).reshape(2, 3, 4)
        np.testing.assert_array_equal(to_three_channels(image), image[..., :3])
        for grey in (image[..., 0], image[..., :1]):
            three = to_three_channels(grey)
            assert three.shape == (2, 3, 3)
            np.testing.assert_array_equal(three[..., 2], image[..., 0])

    @pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 4, 5), (2, 4, 4, 3)])
    def test_other_layouts_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="got shape"):
            to_three_channels(np.zeros(shape))


class TestGeometry:
    @pytest.mark.parametrize(
        ("size", "native", "resized", "padded"),
        [
            ((512, 512), 256, (256, 256), (256, 256)),
            ((300, 200), 256, (256, 171), (256, 192)),
            ((35, 52), 256, (172, 256), (192, 256)),
            ((1, 700), 64, (1, 64), (32, 64)),
            ((1, 1), 64, (64, 64), (64, 64)),
            ((256, 130), 256, (256, 130), (256, 160)),
        ],
    )
    def test_the_long_side_fits_and_the_short_side_follows(
        self, size: tuple[int, int], native: int, resized: tuple[int, int], padded: tuple[int, int]
    ) -> None:
        geometry = Geometry.fit(size, native)
        assert (geometry.resized, geometry.padded) == (resized, padded)

    @pytest.mark.parametrize(("size", "native"), [((0, 4), 64), ((4, -1), 64), ((4, 4), 0)])
    def test_empty_sizes_are_refused(self, size: tuple[int, int], native: int) -> None:
        with pytest.raises(ValueError, match="sizes must be positive"):
            Geometry.fit(size, native)

    def test_edges_map_to_edges_and_centres_follow_the_half_pixel_rule(self) -> None:
        geometry = Geometry.fit((100, 50), 256)
        np.testing.assert_allclose(
            geometry.points_to_model([[-0.5, -0.5], [99.5, 49.5]]), [[-0.5, -0.5], [255.5, 127.5]]
        )
        np.testing.assert_allclose(geometry.points_to_model([0, 0]), [0.78, 0.78])  # 0.5 * 2.56 - 0.5

    @settings(max_examples=200, deadline=None)
    @given(SIDES, SIDES, NATIVES, st.data())
    def test_a_point_comes_back_as_the_same_pixel(
        self, height: int, width: int, native: int, data: st.DataObject
    ) -> None:
        geometry = Geometry.fit((height, width), native)
        pixel = [data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))]
        on_canvas = geometry.points_to_model(pixel)
        assert (on_canvas >= -0.5).all() and (on_canvas <= np.array(geometry.resized) - 0.5).all()
        back = geometry.points_to_image(on_canvas)
        np.testing.assert_allclose(back, pixel, atol=1e-9)
        # Rounding to a canvas pixel, as drawing a disc does, moves a point by half a canvas pixel at most.
        rounded = geometry.points_to_image(np.rint(on_canvas))
        assert (np.abs(rounded - pixel) <= 0.5 / np.array(geometry.scale) + 1e-9).all()

    @settings(max_examples=60, deadline=None)
    @given(SIDES, SIDES, st.sampled_from([64, 256]), st.data())
    def test_a_mask_comes_back_where_it_was(self, height: int, width: int, native: int, data: st.DataObject) -> None:
        geometry = Geometry.fit((height, width), native)
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        bottom, right = data.draw(st.integers(top, height - 1)), data.draw(st.integers(left, width - 1))
        mask = np.zeros((height, width), bool)
        mask[top : bottom + 1, left : right + 1] = True
        back = geometry.logits_to_image(geometry.mask_to_model(mask))[0].double().numpy()
        assert back.shape == (height, width)
        weight = back / back.sum()
        centroid = np.array([(weight.sum(1) * np.arange(height)).sum(), (weight.sum(0) * np.arange(width)).sum()])
        pixel = np.maximum(1.0, 1 / np.array(geometry.scale))  # one pixel of the coarser grid
        assert (np.abs(centroid - [(top + bottom) / 2, (left + right) / 2]) <= pixel).all()

    @pytest.mark.parametrize("size", [(64, 64), (63, 41), (17, 301), (500, 333)])
    @pytest.mark.parametrize("stride", [1, 4, 16])
    def test_a_ramp_survives_the_way_there_and_back(self, size: tuple[int, int], stride: int) -> None:
        """The row coordinate as an image: any shift of the mapping, at any stride, would show as an offset."""
        geometry = Geometry.fit(size, 64)
        rows = (np.arange(size[0])[:, None] + np.zeros(size)) / 1000
        canvas = geometry.image_to_model(rows)
        height, width = geometry.resized
        canvas[:, height:] = canvas[:, height - 1 : height]  # continue the image below, so that pooling sees no step
        pooled = torch.nn.functional.avg_pool2d(canvas[None, :1, :, :width], stride, ceil_mode=True)
        pooled = torch.nn.functional.pad(
            pooled, (0, geometry.padded[1] // stride - pooled.shape[-1], 0, 0), "replicate"
        )
        back = geometry.logits_to_image(pooled)[0, 0].numpy() * 1000
        margin = math.ceil(
            1.5 * stride / geometry.scale[0]
        )  # bilinear resizing clamps half a source pixel at each edge
        inner = slice(margin, size[0] - margin)
        np.testing.assert_allclose(back[inner], 1000 * rows[inner], atol=0.05)

    def test_grey_and_colour_images_take_three_channels(self) -> None:
        geometry = Geometry.fit((30, 20), 64)
        grey = np.random.default_rng(0).random((30, 20), dtype=np.float32)
        canvas = geometry.image_to_model(grey)
        assert canvas.shape == (3, 64, 64) and canvas.dtype == torch.float32
        colour = geometry.image_to_model(np.repeat(grey[..., None], 3, axis=2))
        torch.testing.assert_close(canvas, colour)
        assert not canvas[:, :, 43:].any() and canvas[:, :, :43].all()  # 20 * 64 / 30 = 42.67 columns, then padding

    def test_shrinking_averages_instead_of_skipping(self) -> None:
        stripes = np.zeros((640, 640), np.float32)
        stripes[:, ::2] = 1.0
        canvas = Geometry.fit((640, 640), 64).image_to_model(stripes)
        torch.testing.assert_close(canvas, torch.full((3, 64, 64), 0.5), atol=0.02, rtol=0)

    def test_maps_keep_their_leading_axes(self) -> None:
        geometry = Geometry.fit((33, 70), 64)
        logits = torch.randn(2, 5, *(side // 4 for side in geometry.padded))
        images = geometry.logits_to_image(logits)
        assert images.shape == (2, 5, 33, 70)
        torch.testing.assert_close(images[1, 3], geometry.logits_to_image(logits[1, 3]))

    def test_other_sizes_and_unscaled_values_are_refused(self) -> None:
        geometry = Geometry.fit((30, 20), 64)
        with pytest.raises(ValueError, match=r"image has shape \(20, 30\), expected 30 rows and 20 columns"):
            geometry.image_to_model(np.zeros((20, 30)))
        with pytest.raises(ValueError, match=r"mask has shape \(30, 21\)"):
            geometry.mask_to_model(np.zeros((30, 21)))
        with pytest.raises(ValueError, match=r"a mask must be \(rows, columns\)"):
            geometry.mask_to_model(np.zeros((30, 20, 3)))
        with pytest.raises(ValueError, match=r"scaled to \[0, 1\] \(scale_intensity\), got 0 to 255"):
            geometry.image_to_model(np.linspace(0, 255, 600).reshape(30, 20))
        with pytest.raises(ValueError, match="got nan to nan"):
            geometry.image_to_model(np.full((30, 20), np.nan))


def filter_matrix(source: int, target: int) -> torch.Tensor:
    """The triangle filter that bilinear resizing with antialiasing is, written out: (target, source)."""
    scale = source / target
    centres = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale - 0.5
    weights = (1 - (torch.arange(source) - centres).abs() / max(scale, 1.0)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("source", "target"),
    [((30, 7), (9, 3)), ((7, 30), (3, 40)), ((64, 16), (4, 1)), ((64, 1), (4, 1)), ((1, 64), (1, 4)), ((5, 5), (1, 1))],
)
def test_resize_is_the_triangle_filter(source: tuple[int, int], target: tuple[int, int]) -> None:
    maps = torch.rand(2, 3, *source)
    expected = filter_matrix(source[0], target[0]) @ maps.double() @ filter_matrix(source[1], target[1]).T
    torch.testing.assert_close(resize(maps, target).double(), expected, atol=1e-6, rtol=0)


def test_resize_to_the_same_size_is_the_identity() -> None:
    maps = torch.randn(1, 2, 9, 7)
    assert resize(maps, (9, 7)) is maps


@pytest.mark.parametrize("shape", [(3000, 1500), (1100, 2300, 3), (9000, 301, 3)])
def test_a_large_image_that_is_read_by_rows_gives_the_same_bits(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    geometry = Geometry.fit(shape[:2], 192)
    channels = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)
    expected = resize(channels[None], geometry.resized)[0]
    rows, columns = geometry.resized
    canvas = geometry.image_to_model(image)
    assert torch.equal(canvas[:, :rows, :columns], expected.expand(3, -1, -1))
    assert not canvas[:, rows:].any() and not canvas[:, :, columns:].any()
