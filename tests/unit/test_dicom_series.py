# SPDX-License-Identifier: Apache-2.0
"""DICOM series as volumes: order of slices, geometry, transfer syntaxes, and what is unusual, said in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from lib.dicom.series import describe_series, read_headers, read_voxels
from lib.dicom.volumes import save_volume
from lib.errors import RequestError
from lib.imaging.reading import read_image
from tests.unit import dicom_files


def voxels(instances: list[Dataset], folder: Path) -> np.ndarray:
    files = dicom_files.save(instances, folder)
    return read_voxels(describe_series(list(read_headers(files.values()).values())), files)


@pytest.mark.parametrize("kind", ["CT", "multi-frame"])
def test_slices_are_ordered_along_the_normal_whatever_their_numbers(kind: str, tmp_path: Path) -> None:
    instances = dicom_files.volume() if kind == "CT" else dicom_files.enhanced()
    series = dicom_files.series_of(instances)
    depths = [np.dot(frame.position, np.cross(frame.orientation[:3], frame.orientation[3:])) for frame in series.frames]
    assert depths == sorted(depths)
    np.testing.assert_allclose(np.diff(depths), np.diff(depths)[0], rtol=1e-4)
    expected = np.arange(12 * 10 * 6).reshape(12, 10, 6)
    back = voxels(instances, tmp_path)
    affine = dicom_files.orthogonal(dicom_files.OBLIQUE)
    place = np.linalg.inv(series.affine) @ affine @ [3, 4, 5, 1]  # the voxel (3, 4, 5) of the file
    i, j, k = np.rint(place[:3]).astype(int)
    np.testing.assert_allclose(place[:3], [i, j, k], atol=1e-3)
    assert back[i, j, k] == expected[3, 4, 5]


def test_two_frames_of_reference_agree_on_multi_frame_and_single_frame() -> None:
    single, multi = dicom_files.series_of(dicom_files.volume("MR")), dicom_files.series_of(dicom_files.enhanced())
    np.testing.assert_allclose(single.affine, multi.affine, atol=1e-6)
    assert single.grid == multi.grid
    assert [frame.number for frame in multi.frames] == [6, 5, 4, 3, 2, 1]


def test_rle(tmp_path: Path) -> None:
    instances = dicom_files.volume()
    expected = voxels(instances, tmp_path)
    for instance in instances:
        instance.compress(RLELossless)
    (tmp_path / "rle").mkdir()
    np.testing.assert_array_equal(voxels(instances, tmp_path / "rle"), expected)


@pytest.mark.parametrize(
    ("syntax", "encode", "tolerance"),
    [
        (JPEG2000Lossless, dicom_files.jpeg_2000, 0),
        (JPEGLSLossless, dicom_files.jpeg_ls, 0),
        (JPEGBaseline8Bit, dicom_files.jpeg, 3),
    ],
)
def test_compressed_pixels(syntax: str, encode: Callable[[np.ndarray], bytes], tolerance: int, tmp_path: Path) -> None:
    if syntax == JPEG2000Lossless:
        instances = dicom_files.volume()
        for instance in instances:
            instance.PixelRepresentation = 0
    else:
        instances = dicom_files.picture("US")
        rows, columns = np.mgrid[:9, :13]
        instances[0].PixelData = (rows * 12 + columns * 9).astype(np.uint8).tobytes() + b"\0"  # smooth
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    expected = voxels(instances, tmp_path / "plain")
    back = voxels(dicom_files.compress(instances, syntax, encode), tmp_path / "packed")
    assert np.abs(back.astype(int) - expected.astype(int)).max() <= tolerance


def test_colour_multi_frame_and_inverted_images(tmp_path: Path) -> None:
    for name in ("colour", "cine", "plain", "inverted"):
        (tmp_path / name).mkdir()
    assert voxels(dicom_files.picture("ES", colour=True), tmp_path / "colour").shape == (13, 9, 1, 3)
    assert voxels(dicom_files.cine(), tmp_path / "cine").shape == (13, 9, 4)
    instances = dicom_files.picture("CR")
    plain = voxels(instances, tmp_path / "plain")
    instances[0].PhotometricInterpretation = "MONOCHROME1"
    inverted = voxels(instances, tmp_path / "inverted")
    np.testing.assert_array_equal(inverted, 255 - plain)


def test_missing_spacing_and_missing_slices_are_said_and_worked_with() -> None:
    instances = dicom_files.volume()
    del instances[3]
    series = dicom_files.series_of(instances)
    [warning] = series.warnings
    assert warning.startswith("Slices seem to be missing: after slice")
    assert series.grid == (12, 10, 5)
    whole = dicom_files.series_of(dicom_files.volume())
    np.testing.assert_allclose(series.affine[:3, 2], whole.affine[:3, 2], atol=1e-4)

    instances = dicom_files.volume()
    for instance in instances:
        del instance.PixelSpacing
    [warning] = dicom_files.series_of(instances).warnings
    assert "no pixel spacing" in warning


def test_images_of_which_no_plane_is_that_of_most_are_pictures() -> None:
    instances = dicom_files.volume()
    for instance in instances[:3]:
        instance.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    series = dicom_files.series_of(instances)
    assert not series.positioned
    assert "images in 2 orientations" in series.warnings[0]
    assert [frame.instance for frame in series.frames] == [str(instance.SOPInstanceUID) for instance in instances]


def test_ultrasound_regions_give_the_spacing() -> None:
    [picture] = dicom_files.picture("US")
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    picture.SequenceOfUltrasoundRegions = [region]
    series = dicom_files.series_of([picture])
    np.testing.assert_allclose(np.abs(np.diag(series.affine))[:2], [0.2, 0.3])
    assert series.warnings == ()


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note.dcm").write_text("no DICOM")
    with pytest.raises(RequestError, match=r"note\.dcm is not a readable DICOM file"):
        read_headers([tmp_path / "note.dcm"])
    with pytest.raises(RequestError, match="has no images"):
        describe_series([Dataset()])


@pytest.mark.parametrize("spacing", [(0.98, 0.98, 0.625), (0.9, 1.1, 1.1), (1.0, 1.0, 8.0)])
@pytest.mark.parametrize("angle", [0, 35, 45, 80])
def test_a_series_is_cut_into_its_own_images(spacing: tuple[float, float, float], angle: int, tmp_path: Path) -> None:
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ np.diag(spacing)
    array = np.arange(12 * 10 * 6, dtype=np.int16).reshape(12, 10, 6)
    save_volume(array, affine, tmp_path / "series.nii.gz")
    image = read_image(tmp_path / "series.nii.gz", "series")
    assert image.orientation.axes[0] == 2
    assert {image.locate((i, j, 4))[0] for i in (0, 11) for j in (0, 9)} == {image.slice_at(4)}
