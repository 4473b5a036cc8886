# SPDX-License-Identifier: Apache-2.0
"""Intensity scaling: one range for an image or volume, and the same values for any part of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kprism_model import intensity
from kprism_model.intensity import (
    CT_WINDOWS,
    IntensityRange,
    looks_like_hounsfield,
    scale_intensity,
)


def body_ct(shape: tuple[int, ...] = (4, 40, 50)) -> np.ndarray:
    """Air around a block of soft tissue with a bone in it, in Hounsfield units."""
    image = np.full(shape, -1000, np.int16)
    image[..., 5:35, 10:40] = 40
    image[..., 10:15, 15:20] = 700
    return image


class TestScaleIntensity:
    def test_an_explicit_window_wins_over_units(self) -> None:
        scaled = scale_intensity(body_ct(), units="HU", window=CT_WINDOWS["soft tissue"])
        assert scaled.dtype == np.float32
        assert sorted(set(scaled.ravel().tolist())) == [0.0, 0.5, 1.0]  # 40 HU is the middle of -160 .. 240

    @pytest.mark.parametrize("named", [{"units": "HU"}, {"modality": "CT"}, {}])
    def test_hounsfield_units_get_the_wide_window(self, named: dict[str, str]) -> None:
        scaled = scale_intensity(body_ct(), **named)
        np.testing.assert_allclose(scaled[0, 6, 11], 0.54, atol=1e-7)  # (40 + 500) / 1000
        assert scaled[0, 0, 0] == 0.0 and scaled[0, 12, 17] == 1.0

    def test_ct_of_8_bits_and_other_modalities_are_not_hounsfield(self) -> None:
        picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
        assert scale_intensity(picture, modality="CT").max() == 1.0
        low, high = np.percentile(body_ct(), 0.5), 700.0
        expected = (40 - low) / (high - low)
        np.testing.assert_allclose(scale_intensity(body_ct(), modality="MR")[0, 6, 11], expected, atol=1e-6)

    def test_percentiles_do_not_let_an_outlier_or_the_background_rule(self) -> None:
        rng = np.random.default_rng(0)
        image = np.zeros((10, 64, 64), np.float32)
        image[:, :8, :8] = rng.uniform(100, 200, (10, 8, 8))  # 1.6 % of the voxels
        image[0, 0, 0] = 1e6
        scaled = scale_intensity(image)
        assert scaled[0, 40, 40] == 0.0
        np.testing.assert_allclose(scaled[1, :8, :8], image[1, :8, :8] / 199.5, atol=0.01)
        assert scaled[0, 0, 0] == 1.0

    def test_8_bit_colour_is_divided_by_255_and_grey_colour_is_grey(self) -> None:
        rng = np.random.default_rng(0)
        colour = rng.integers(40, 120, (30, 20, 3), dtype=np.uint8)
        np.testing.assert_array_equal(scale_intensity(colour), (colour / 255).astype(np.float32))
        grey = colour[..., 0]
        np.testing.assert_array_equal(scale_intensity(np.repeat(grey[..., None], 3, 2))[..., 1], scale_intensity(grey))

    def test_values_that_are_not_finite_follow_the_rule(self) -> None:
        image = np.linspace(0, 1, 100).reshape(10, 10)
        image[0, 1:4] = np.nan, np.inf, -np.inf
        scaled = scale_intensity(image, window=(0.0, 1.0))
        assert scaled[0, 1:4].tolist() == [0.0, 1.0, 0.0]
        np.testing.assert_allclose(scaled[1], image[1], atol=1e-7)

    @pytest.mark.parametrize("value", [0, -3, 255, 1000])
    def test_a_constant_image_gives_zeros(self, value: int) -> None:
        assert not scale_intensity(np.full((5, 7), value, np.int16)).any()

    @pytest.mark.parametrize(
        ("image", "window", "message"),
        [
            (np.zeros((4, 4), complex), None, "real numbers, got dtype complex128"),
            (np.array([["a", "b"]]), None, "real numbers, got dtype <U1"),
            (np.zeros((4, 4), object), None, "real numbers, got dtype object"),
            (np.full((4, 4), np.nan), None, r"shape \(4, 4\) holds no finite value"),
            (np.zeros(4), None, r"two axes and one pixel, got shape \(4,\)"),
            (np.zeros((0, 4)), None, r"two axes and one pixel, got shape \(0, 4\)"),
            (np.zeros((4, 4)), (5.0, 5.0), r"finite lower bound below a finite upper bound, got \(5.0, 5.0\)"),
            (np.zeros((4, 4)), (0.0, math.inf), r"got \(0.0, inf\)"),
        ],
    )
    def test_what_cannot_be_scaled_is_refused(
        self, image: np.ndarray, window: tuple[float, float] | None, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            scale_intensity(image, window=window)

    @settings(max_examples=150, deadline=None)
    @given(
        hnp.arrays(
            st.sampled_from([np.bool_, np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float32, np.float64]),
            hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
        )
    )
    def test_the_result_is_always_within_0_and_1(self, image: np.ndarray) -> None:
        if image.dtype.kind == "f" and not np.isfinite(image).any():
            with pytest.raises(ValueError, match="no finite value"):
                scale_intensity(image)
            return
        scaled = scale_intensity(image)
        assert scaled.dtype == np.float32 and scaled.shape == image.shape
        assert scaled.min() >= 0.0 and scaled.max() <= 1.0


class TestLooksLikeHounsfield:
    def test_a_ct_is_one(self) -> None:
        assert looks_like_hounsfield(body_ct())
        assert looks_like_hounsfield(body_ct().astype(np.float64))

    def test_other_images_are_not(self) -> None:
        rng = np.random.default_rng(0)
        assert not looks_like_hounsfield(rng.integers(0, 2000, (50, 50)))
        assert not looks_like_hounsfield(rng.integers(-4096, 4096, (50, 50)))  # signed MR phase
        assert not looks_like_hounsfield(rng.normal(0, 600, (50, 50)))  # not integers
        assert not looks_like_hounsfield(rng.integers(0, 255, (50, 50), dtype=np.uint8))

    def test_the_real_ct_are_and_the_real_mr_are_not(self, data: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        for name, expected in (("chaos_ct", True), ("totalseg_ct", True), ("hippocampus_mr", False)):
            for path in sorted((data / name / "images").glob("*.nii.gz"))[:2]:
                assert looks_like_hounsfield(np.asarray(nibabel.load(path).dataobj)) is expected, path


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, ">i2", np.int32, np.float32, np.float64, bool]
)
@pytest.mark.parametrize("rescale", [(1.0, 0.0), (0.37, -11.5)])
def test_parts_are_scaled_as_the_whole_is_and_tables_give_the_same_bits(
    dtype: object, rescale: tuple[float, float]
) -> None:
    rng = np.random.default_rng(3)
    stored = rng.integers(0, 2 if dtype is bool else 120, (5, 17, 23)).astype(dtype)
    values = stored if rescale == (1.0, 0.0) else (stored * rescale[0] + rescale[1]).astype(np.float32)
    whole = scale_intensity(values)
    intensities = IntensityRange.of(values)
    for number in range(5):
        part = intensities.scale(stored[number, 2:9, ::2], rescale)
        np.testing.assert_array_equal(part, whole[number, 2:9, ::2])
    expected = (np.clip(values.astype(np.float64), intensities.low, intensities.high) / 2 - intensities.low / 2) / (
        intensities.high / 2 - intensities.low / 2
    )
    np.testing.assert_array_equal(whole, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.float32, np.float64, bool])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("modality", ["MR", None])
def test_the_range_does_not_depend_on_how_values_lie_in_memory(
    dtype: object, axes: tuple[int, int, int], modality: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evenly spaced values of the whole are found in parts of it, and in views that are no block of memory."""
    monkeypatch.setattr(intensity, "SAMPLES", 700)
    values = np.random.default_rng(4).normal(60, 40, (13, 17, 23)).astype(dtype)
    if values.dtype.kind == "f":
        values[3, 4, :2] = np.nan, np.inf
    view = values.transpose(axes)[:, ::-1]
    expected = IntensityRange.of(np.ascontiguousarray(view), modality=modality)
    for at_once in (1 << 20, 900, 1):
        monkeypatch.setattr(intensity, "_VALUES_AT_ONCE", at_once)
        assert IntensityRange.of(view, modality=modality) == expected
    sample = np.ascontiguousarray(view).reshape(-1)[:: values.size // 700]
    np.testing.assert_array_equal(intensity._sample(view), sample)
