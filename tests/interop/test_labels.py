# SPDX-License-Identifier: Apache-2.0
"""Values of labels that files have rounded, and labels that lie on no place that the image states."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest

from lib.errors import RequestError
from lib.imaging.reading import read_image, read_mask
from tests.interop import small_files
from tests.interop.small_files import AFFINE, SHAPE

LABELS = np.random.default_rng(3).choice([0, 1, 2, 4], SHAPE)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
def test_values_that_a_slope_has_rounded(tmp_path: Path, dtype: str) -> None:
    """nibabel chooses a slope for real numbers that it writes as integers, such as 1.5e-2 for 0 to 4 in eight bits."""
    image = nibabel.Nifti1Image(LABELS.astype(np.float64), AFFINE)
    image.header.set_data_dtype(dtype)
    nibabel.save(image, tmp_path / "label.nii.gz")
    again = nibabel.load(tmp_path / "label.nii.gz").get_fdata()
    assert not np.array_equal(again, LABELS)
    np.testing.assert_array_equal(read_mask(tmp_path / "label.nii.gz", "the label").array, LABELS)


@pytest.mark.parametrize("by", [1.526e-5, -5e-5, 9e-4, -9e-4])
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_values_within_a_thousandth(tmp_path: Path, suffix: str, by: float) -> None:
    save(tmp_path / f"label{suffix}", (LABELS + by).astype(np.float32))
    np.testing.assert_array_equal(read_mask(tmp_path / f"label{suffix}", "the label").array, LABELS)


def save(path: Path, array: np.ndarray) -> None:
    writers = {".nii": small_files.save_nifti, ".nrrd": small_files.save_nrrd, ".mha": small_files.save_metaimage}
    writers[path.suffix](path, array, AFFINE)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.002, "1.002"), (0.5, "0.5"), (-1, "-1"), (1e20, "1e\\+20"), (np.nan, "nan"), (np.inf, "inf")],
)
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_other_values_are_named(tmp_path: Path, suffix: str, value: float, shown: str) -> None:
    array = LABELS.astype(np.float32)
    array[3, 2, 4] = value
    save(tmp_path / f"label{suffix}", array)
    with pytest.raises(RequestError, match=rf"the label is not a label map: it is {shown} at \[3, 2, 4\]; expected"):
        read_mask(tmp_path / f"label{suffix}", "the label")


@pytest.mark.parametrize("value", [256, 1003.0003, 14175])
@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_values_above_eight_bits_are_numbered(tmp_path: Path, suffix: str, value: float) -> None:
    array = LABELS.astype(np.float32)
    array[3, 2, 4] = value
    save(tmp_path / f"label{suffix}", array)
    mask = read_mask(tmp_path / f"label{suffix}", "the label")
    assert mask.file_labels is not None and mask.file_labels.values == (1, 2, 4, round(value))
    np.testing.assert_array_equal(np.array([0, *mask.file_labels.values])[mask.array], np.rint(array))


def test_a_map_of_probabilities_in_eight_bits_is_no_label_map(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.linspace(0, 1, LABELS.size).reshape(SHAPE), AFFINE)
    image.header.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "label.nii.gz")
    with pytest.raises(RequestError, match="the label is not a label map"):
        read_mask(tmp_path / "label.nii.gz", "the label")


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (0, 2), (1, 0)])
@pytest.mark.parametrize("kind", ["shifted", "turned"])
def test_a_label_at_a_third_place_is_refused(tmp_path: Path, kind: str, codes: tuple[int, int]) -> None:
    nibabel.save(small_files.with_forms(kind, *codes, "mm", small_files.voxels()), tmp_path / "image.nii")
    image = read_image(tmp_path / "image.nii", "the image")
    for away in ([0, 0, 3], [-10, 5, -3], [1, 0, 0]):
        third = AFFINE.copy()
        third[:3, 3] += away
        nibabel.save(nibabel.Nifti1Image(LABELS.astype(np.uint8), third), tmp_path / "label.nii")
        with pytest.raises(RequestError, match="the label lies elsewhere than the image"):
            image.on_grid(read_mask(tmp_path / "label.nii", "the label"), "the label")


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (2, 1)])
def test_a_place_without_a_code_is_not_stated(tmp_path: Path, codes: tuple[int, int]) -> None:
    nibabel.save(small_files.with_forms("shifted", *codes, "mm", small_files.voxels()), tmp_path / "image.nii")
    image = read_image(tmp_path / "image.nii", "the image")
    stated = {1: [AFFINE], 0: []}[codes[0] > 0] + {1: [small_files.forms("shifted")], 0: []}[codes[1] > 0]
    for place in (AFFINE, small_files.forms("shifted")):
        nibabel.save(nibabel.Nifti1Image(LABELS.astype(np.uint8), place), tmp_path / "label.nii")
        label = read_mask(tmp_path / "label.nii", "the label")
        if any(place is one or np.array_equal(place, one) for one in stated):
            np.testing.assert_array_equal(image.on_grid(label, "the label"), LABELS)
        else:
            with pytest.raises(RequestError, match="lies elsewhere"):
                image.on_grid(label, "the label")


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_lengths_are_in_millimetres_whatever_the_unit(tmp_path: Path, unit: str) -> None:
    nibabel.save(small_files.with_forms("same", 1, 1, unit, small_files.voxels()), tmp_path / "image.nii")
    factor = {"micron": 0.001, "meter": 1000.0}[unit]
    image = read_image(tmp_path / "image.nii", "the image")
    np.testing.assert_allclose(image.spacing, np.array([0.75, 0.875, 2.5]) * factor, rtol=1e-5)


@pytest.mark.parametrize("space", ["foo", "left-right-superior", "LLS", "LP", "LPSX", "left-posterior", "-time", "xyz"])
def test_unknown_spaces_are_refused(tmp_path: Path, space: str) -> None:
    header = {"space": space, "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "image.nrrd"), small_files.voxels(), header, index_order="F")
    with pytest.raises(RequestError, match=f"the image has the space '{space}'; expected an anatomical one"):
        read_image(tmp_path / "image.nrrd", "the image")


@pytest.mark.parametrize("fields", [{"space dimension": 2}, {"space": "left-posterior-superior"}, {"space": "RAS"}])
def test_a_picture_in_nrrd(tmp_path: Path, fields: dict[str, object]) -> None:
    width = 2 if "space dimension" in fields else 3
    signs = np.array([1, 1, 1] if fields.get("space") == "RAS" else [-1, -1, 1])[:width]
    header = {**fields, "space directions": np.eye(2, width) * 1.5, "space origin": np.array([4.0, 5, 6])[:width]}
    nrrd.write(str(tmp_path / "image.nrrd"), small_files.voxels()[:, :, 0], header, index_order="F")
    image = read_image(tmp_path / "image.nrrd", "the image")
    assert (image.grid, image.dimensions) == ((7, 6, 1), 2)
    expected = np.eye(4)
    expected[:width, :2] = np.eye(width, 2) * 1.5 * signs[:, None]
    expected[:width, 3] = np.array([4.0, 5, 6])[:width] * signs
    expected[:2, 2] = 0
    np.testing.assert_allclose(image.affine[:3, [0, 1, 3]], expected[:3, [0, 1, 3]])
    np.testing.assert_array_equal(image.array[:, :, 0], small_files.voxels()[:, :, 0])
