# SPDX-License-Identifier: Apache-2.0
"""Images become DICOM series and come back: every voxel where it was, in every orientation."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.dicom.series import describe_series, read_headers, read_voxels
from lib.dicom.series_writer import dicom_series, guess_modality
from lib.dicom.web import as_bytes
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image

ORIENTATIONS = [
    "".join(letters) for order in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*order)
]


def write_series(image: MedicalImage, folder: Path, modality: str) -> None:
    for number, instance in enumerate(list(dicom_series(image, "case", modality))):
        (folder / f"{9 - number % 10}{number:03}.dcm").write_bytes(as_bytes(instance))  # names are in no order


def read_back(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    headers = read_headers(folder.glob("*.dcm"))
    series = describe_series(list(headers.values()))
    files = {str(header.SOPInstanceUID): path for path, header in headers.items()}
    return read_voxels(series, files), series.affine


def turned(orientation: str, angle: float, spacing: tuple[float, float, float]) -> np.ndarray:
    """An affine near to an orientation, turned by `angle` about an oblique axis."""
    start = nibabel.orientations.axcodes2ornt(tuple(orientation))
    directions = np.zeros((3, 3))
    for axis, (to, sign) in enumerate(start):
        directions[int(to), axis] = sign
    axis = np.array([0.6, 0.64, 0.48])
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = turn @ directions @ np.diag(spacing)
    affine[:3, 3] = (-101.25, 33.5, 400.125)
    return affine


def same_places(first: np.ndarray, affine: np.ndarray, second: np.ndarray, other: np.ndarray) -> None:
    """Every voxel of the first array lies, with its value, in the second."""
    voxels = np.argwhere(np.ones(first.shape[:3], bool))
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    found = (world - other[:3, 3]) @ np.linalg.inv(other[:3, :3]).T
    np.testing.assert_allclose(found, np.rint(found), atol=0.01)  # a hundredth of a voxel
    i, j, k = np.rint(found).astype(int).T
    np.testing.assert_array_equal(first[tuple(voxels.T)], second[i, j, k])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_geometry_round_trip_in_all_48_orientations(orientation: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(len(orientation))
    array = generator.integers(-1000, 2000, (7, 6, 5)).astype(np.int16)
    affine = turned(orientation, 0.2, (0.7, 0.9, 2.5))
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "case.nii.gz")
    image = read_image(tmp_path / "case.nii.gz", "case")
    write_series(image, tmp_path, "CT")
    back, where = read_back(tmp_path)
    same_places(array, image.affine, back, where)


@settings(max_examples=25, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    angle=st.floats(-0.7, 0.7),
    spacing=st.tuples(*[st.floats(0.05, 12)] * 3),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
)
def test_geometry_round_trip_of_any_grid(
    tmp_path_factory: pytest.TempPathFactory,
    orientation: str,
    angle: float,
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
) -> None:
    folder = tmp_path_factory.mktemp("grid")
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    affine = turned(orientation, angle, spacing)
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / "case.nii")
    image = read_image(folder / "case.nii", "case")
    write_series(image, folder, "MR")
    back, where = read_back(folder)
    same_places(array, image.affine, back, where)


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("uint8", 0, 255), ("int16", -1024, 3071), ("uint16", 0, 65535), ("float32", -3, 4000)]
)
def test_whole_numbers_are_kept_exactly(kind: str, low: int, high: int, tmp_path: Path) -> None:
    array = np.linspace(low, high, 60).round().reshape(5, 4, 3).astype(kind)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "case.nii")
    write_series(read_image(tmp_path / "case.nii", "case"), tmp_path, "MR")
    back, where = read_back(tmp_path)
    same_places(array, np.eye(4), back, where)


def test_fractions_are_kept_to_a_65535th_of_their_range(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(0.5, 0.2, (6, 5, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1])), tmp_path / "case.nii")
    write_series(read_image(tmp_path / "case.nii", "case"), tmp_path, "MR")
    back, _ = read_back(tmp_path)
    assert np.abs(back - array).max() <= np.ptp(array) / 65535


@pytest.mark.parametrize(
    ("modality", "colour"), [("US", False), ("US", True), ("CR", False), ("ES", True), ("OT", False)]
)
def test_pictures_keep_rows_columns_and_colour(modality: str, colour: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (11, 17, 3) if colour else (11, 17), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    write_series(read_image(tmp_path / "picture.png", "picture"), tmp_path, modality)
    back, _ = read_back(tmp_path)
    np.testing.assert_array_equal(back[:, :, 0], pixels.swapaxes(0, 1))


def test_the_modality_of_volumes_is_told_by_air(tmp_path: Path) -> None:
    for low, expected in ((-1000, "CT"), (0, "MR")):
        array = np.linspace(low, 900, 60).reshape(5, 4, 3).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "case.nii")
        assert guess_modality(read_image(tmp_path / "case.nii", "case")) == expected


def test_an_image_imported_again_is_the_same_series(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "case.nii")
    image = read_image(tmp_path / "case.nii", "case")
    first, second = ([str(i.SOPInstanceUID) for i in dicom_series(image, "case", "MR")] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), sheared), tmp_path / "case.nii")
    image = read_image(tmp_path / "case.nii", "case.nii")
    with pytest.raises(RequestError, match="not at right angles"):
        list(dicom_series(image, "case", "MR"))
    with pytest.raises(RequestError, match="has 4 slices; expected modality CT or MR"):
        list(dicom_series(image, "case", "US"))
