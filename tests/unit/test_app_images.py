# SPDX-License-Identifier: Apache-2.0
"""Files become images whose voxels and slices agree, masks go back on the same grid, bad files are refused."""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from nibabel.orientations import inv_ornt_aff, ornt_transform
from PIL import Image

from kprism_model.volumes.data import Volume
from kprism_model.volumes.slice_map import SliceMap
from lib.errors import NotFoundError, RequestError, TooLargeError
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image, read_mask
from lib.imaging.writing import ResultFormat, write_mask
from tests.unit import dicom_files

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]
"""All 48 ways to store a volume."""


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def marked(shape: tuple[int, ...], voxel: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, np.int16)
    array[voxel] = 100
    return array


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_voxel_is_found_in_its_slice_whatever_the_orientation(tmp_path: Path, orientation: np.ndarray) -> None:
    stored = marked((6, 7, 5), (1, 2, 4))
    change = ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), orientation)
    turned = nibabel.orientations.apply_orientation(stored, change)
    affine = np.diag([1.0, 1.1, 4.0, 1.0]) @ inv_ornt_aff(change, stored.shape)
    image = read_image(save_nifti(tmp_path / "v.nii.gz", turned, affine), "v")
    voxel = tuple(int(i) for i in np.argwhere(turned == 100)[0])
    assert image.slices == 5
    scaled = np.asarray(image.scaled)
    assert scaled[image.locate(voxel)] == 1
    assert scaled.sum() == 1
    # the same anatomy gives the same slices however it is stored
    reference = read_image(save_nifti(tmp_path / "r.nii.gz", stored, np.diag([1.0, 1.1, 4.0, 1.0])), "r")
    np.testing.assert_array_equal(image.scaled, reference.scaled)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
@pytest.mark.parametrize("count", [17, 40, 131])
def test_a_volume_that_is_empty_but_for_one_slice(tmp_path: Path, count: int, dtype: str) -> None:
    """The slices that the range of intensities is taken from hold one value only."""
    array = marked((6, 7, count), (1, 2, count - 2)).astype(dtype)
    image = read_image(save_nifti(tmp_path / "v.nii.gz", array), "v")
    assert (image.intensities.bottom, image.intensities.top) == (0, 100)
    np.testing.assert_array_equal(np.argwhere(np.asarray(image.scaled)), [image.locate((1, 2, count - 2))])
    with pytest.raises(RequestError, match="v is constant: every voxel is 0"):
        read_image(save_nifti(tmp_path / "c.nii.gz", np.zeros_like(array)), "v")


@pytest.mark.parametrize("shape", [(1, 30, 20), (30, 1, 20), (30, 20, 1)])
def test_a_volume_of_one_slice_is_that_slice(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = read_image(save_nifti(tmp_path / "v.nii.gz", marked(shape, (0, 0, 0)), np.eye(4)), "v")
    assert sorted(image.scaled.shape) == [1, 20, 30]
    assert image.slices == 1


def test_pictures_have_i_as_column_and_j_as_row(tmp_path: Path) -> None:
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[5, 9] = 255, 0, 0
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    image = read_image(tmp_path / "colour.png", "colour")
    assert image.grid == (100, 60, 1)
    assert image.is_colour
    assert image.locate((9, 5, 0)) == (0, 5, 9)
    np.testing.assert_array_equal(image.scaled, pixels[None] / np.float32(255))


def test_a_nrrd_volume_has_the_place_of_its_nifti_twin(tmp_path: Path) -> None:
    affine = np.array([[0.8, 0.1, 0, -90], [-0.1, 0.8, 0, 30], [0, 0, 2.5, -7], [0, 0, 0, 1.0]])
    twin = read_image(save_nifti(tmp_path / "v.nii.gz", marked((8, 9, 5), (1, 2, 3)), affine), "v")
    lps = np.diag([-1, -1, 1, 1]) @ affine
    header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(tmp_path / "v.nrrd"), twin.array, header)
    image = read_image(tmp_path / "v.nrrd", "v")
    np.testing.assert_array_equal(image.array, twin.array)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(image.scaled, twin.scaled)


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_masks_come_back_on_the_same_grid(tmp_path: Path, extension: str, dtype: str) -> None:
    affine = np.array([[0, -0.8, 0, 10], [0.8, 0, 0, -20], [0, 0, -2.5, 300], [0, 0, 0, 1.0]])
    image = read_image(save_nifti(tmp_path / "v.nii.gz", marked((8, 9, 5), (1, 2, 3)), affine), "v")
    labels = np.random.default_rng(0).integers(0, 4, image.grid, np.uint8)
    path = write_mask(SliceMap.of(labels, image.orientation), image, ResultFormat(extension, dtype))
    again = read_mask(path, "mask")
    path.unlink()
    np.testing.assert_array_equal(again.array, labels)
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-5)


def test_nrrd_is_raw_with_x_fastest(tmp_path: Path) -> None:
    image = read_image(save_nifti(tmp_path / "v.nii.gz", marked((8, 9, 5), (1, 2, 3))), "v")
    labels = np.random.default_rng(0).integers(0, 4, image.grid, np.uint8)
    path = write_mask(
        SliceMap.of(labels, image.orientation),
        image,
        ResultFormat.parse({"result_extension": ".nrrd", "result_compress": False}, image),
    )
    content = path.read_bytes()
    path.unlink()
    assert b"encoding: raw" in content
    assert content[-labels.size :] == labels.tobytes(order="F")


def test_a_mask_of_a_jpeg_is_lossless_and_keeps_its_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (33, 57, 3), np.uint8)).save(tmp_path / "p.jpg")
    image = read_image(tmp_path / "p.jpg", "p")
    labels = rng.integers(0, 4, image.grid, np.uint8)
    form = ResultFormat.parse({}, image)
    path = write_mask(SliceMap.of(labels, image.orientation), image, form)
    pixels = np.array(Image.open(path))
    path.unlink()
    assert form.extension == ".png"
    np.testing.assert_array_equal(pixels, labels[:, :, 0].T)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"result_extension": ".dcm"}, "'.dcm'"),
        ({"result_extension": ["x"]}, "'x'"),
        ({"result_extension": ".png"}, "5 slices"),
        ({"result_dtype": "complex64"}, "complex64"),
        ({"result_compress": "maybe"}, "maybe"),
    ],
)
def test_bad_result_formats(params: dict[str, Any], named: str) -> None:
    image = MedicalImage("v", np.zeros((8, 9, 5), np.uint8), np.diag([1, 1, 3, 1.0]), 3, ".nii.gz", "digest")
    with pytest.raises(RequestError, match=named):
        ResultFormat.parse(params, image)


def broken_float(value: float) -> np.ndarray:
    array = np.arange(60, dtype=np.float32).reshape(5, 4, 3)
    array[1, 2, 0] = value
    return array


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty.nii.gz": (lambda path: path.write_bytes(b""), "empty file"),
    "text.nii.gz": (lambda path: path.write_text("not an image"), "not a readable .nii.gz file"),
    "text.nrrd": (lambda path: path.write_text("not an image"), "not a readable .nrrd file"),
    "text.png": (lambda path: path.write_text("not an image"), "not a readable .png file"),
    "notes.txt": (lambda path: path.write_text("hello"), "'.txt'"),
    "folder.nii": (lambda path: path.mkdir(), "is a folder"),
    "constant.nii.gz": (lambda path: save_nifti(path, np.full((5, 4, 3), 7, np.int16)), "every voxel is 7"),
    "nan.nii.gz": (lambda path: save_nifti(path, broken_float(np.nan)), r"1 voxels.*\[1, 2, 0\] \(nan\)"),
    "infinite.nii.gz": (lambda path: save_nifti(path, broken_float(np.inf)), r"\(inf\)"),
    "series.nii.gz": (lambda path: save_nifti(path, np.zeros((5, 4, 3, 2), np.uint8)), "4 axes .5 x 4 x 3 x 2."),
    "three.nii.gz": (lambda path: save_nifti(path, np.zeros((5, 4, 3, 3), np.uint8)), "4 axes .5 x 4 x 3 x 3."),
    "complex.nii.gz": (lambda path: save_nifti(path, np.zeros((5, 4, 3), np.complex64)), "complex64"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path: Path, name: str) -> None:
    write, message = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(RequestError, match=message) as caught:
        read_image(tmp_path / name, f"image {name!r}")
    assert name in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("keep", [100, 400, 2000])
def test_a_file_cut_short(tmp_path: Path, keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 10)).astype(np.int16)
    path = save_nifti(tmp_path / "cut.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RequestError, match=r"cut.*not a readable"):
        read_image(path, "cut")


def test_a_header_that_lies_about_its_size(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "lie.nii", np.arange(60, dtype=np.int16).reshape(5, 4, 3))
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(RequestError, match="30000 x 30000 x 30000"):
        read_image(path, "lie")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_data_are_inflated_as_far_as_the_header_says(tmp_path: Path, compress: Any) -> None:
    name = {gzip.compress: "gzip", bz2.compress: "bzip2"}[compress]
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 9 8 7\nencoding: {name}\nendian: little\n\n"
    voxels = np.arange(9 * 8 * 7, dtype=np.uint8)
    body = compress(voxels.tobytes() + bytes(64 << 20))
    (tmp_path / "bomb.nrrd").write_bytes(header.encode() + body)
    tracemalloc.start()
    image = read_image(tmp_path / "bomb.nrrd", "bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(image.array, voxels.reshape((9, 8, 7), order="F"))
    assert peak < 8 << 20


def test_a_nifti_header_that_goes_on_forever(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "long.nii", np.arange(60, dtype=np.int16).reshape(5, 4, 3))
    content = bytearray(path.read_bytes())
    content[108:112] = np.array([2.0**30], "<f4").tobytes()
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(RequestError, match="before its voxels"):
        read_image(path.with_suffix(".nii.gz"), "long")


@pytest.mark.parametrize("name", ["v.nii.gz", "v.nrrd", "p.png"])
def test_files_larger_than_the_limit_are_refused(tmp_path: Path, name: str) -> None:
    array = np.arange(40 * 30 * 20, dtype=np.int16).reshape(40, 30, 20)
    size = array.nbytes
    if name.endswith("png"):
        Image.fromarray(array[:, :, 0].astype(np.uint8)).save(tmp_path / name)
        size = 40 * 30
    elif name.endswith("nrrd"):
        nrrd.write(str(tmp_path / name), array)
    else:
        save_nifti(tmp_path / name, array)
    assert read_image(tmp_path / name, "it", size).array.size
    with pytest.raises(TooLargeError, match="this server's limit for one image"):
        read_image(tmp_path / name, "it", size - 1)


def test_voxels_with_a_slope_are_kept_as_they_are_stored(tmp_path: Path) -> None:
    stored = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))
    stored.header.set_slope_inter(0.5, -10)
    nibabel.save(stored, tmp_path / "v.nii.gz")
    image = read_image(tmp_path / "v.nii.gz", "v")
    assert image.array.dtype == np.int16 and image.values.dtype == np.float32
    np.testing.assert_allclose(image.values, nibabel.load(tmp_path / "v.nii.gz").get_fdata(), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_is_scaled_over_the_whole_volume(dtype: type) -> None:
    """The same tissue has the same intensity in all slices: grey stored as RGB, and colour of more than 8 bits."""
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    grey = rng.integers(0, top // 4, (30, 40, 5, 1))
    grey[:, :, 4] *= 4  # one slice is much brighter than the others
    array = np.repeat(grey, 3, axis=3).astype(dtype)
    if dtype == np.uint16:
        array[..., 2] //= 2
    array[7, 9, 1:] = top // 8  # the same tissue in four slices
    image = MedicalImage("v", array, np.diag([1, 1, 3, 1.0]), 3, ".nii.gz", "digest")
    tissue = {tuple(np.asarray(image.scaled)[image.locate((7, 9, k))]) for k in range(1, 5)}
    assert len(tissue) == 1
    np.testing.assert_array_equal(image.scaled, Volume.of(array, image.affine).images)


def test_a_grey_slice_of_a_colour_volume_is_scaled_like_the_others() -> None:
    array = np.random.default_rng(0).integers(0, 256, (30, 40, 5, 3), np.uint8)
    array[:, :, 2] = array[:, :, 2, :1] // 2
    image = MedicalImage("v", array, np.diag([1, 1, 3, 1.0]), 3, ".nii.gz", "digest")
    np.testing.assert_array_equal(image.scaled, image.to_slices(array) / np.float32(255))


def test_a_picture_of_another_format_under_a_picture_s_name(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png", format="GIF")
    with pytest.raises(RequestError, match=r"not a readable \.png"):
        read_image(tmp_path / "x.png", "the picture")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone"):
        read_image(tmp_path / "gone.nii.gz", "gone")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_stored_in_another_orientation_is_turned(tmp_path: Path, orientation: np.ndarray) -> None:
    affine = np.array([[0, -0.8, 0, 10], [0.8, 0, 0, -20], [0, 0, -2.5, 300], [0, 0, 0, 1.0]])
    labels = np.random.default_rng(0).integers(0, 4, (8, 9, 5), np.uint8)
    image = read_image(save_nifti(tmp_path / "v.nii.gz", labels.astype(np.int16), affine), "v")
    change = ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), orientation)
    turned = nibabel.orientations.apply_orientation(labels, change)
    path = save_nifti(tmp_path / "m.nii.gz", turned, affine @ inv_ornt_aff(change, labels.shape))
    np.testing.assert_array_equal(image.on_grid(read_mask(path, "m"), "m"), labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.diag([1, 1, 1.1, 1]), "lies elsewhere"),
        (np.array([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "lies elsewhere"),
        (np.diag([-1.0, 1, 1, 1]), "lies elsewhere"),
    ],
)
def test_a_mask_at_another_place_is_refused(tmp_path: Path, change: np.ndarray, message: str) -> None:
    affine = np.array([[0, -0.8, 0, 10], [0.8, 0, 0, -20], [0, 0, -2.5, 300], [0, 0, 0, 1.0]])
    image = read_image(save_nifti(tmp_path / "v.nii.gz", marked((8, 9, 5), (1, 2, 3)), affine), "v")
    mask = read_mask(save_nifti(tmp_path / "m.nii.gz", np.ones((8, 9, 5), np.uint8), change @ affine), "m")
    with pytest.raises(RequestError, match=message):
        image.on_grid(mask, "the mask")


@pytest.mark.parametrize("value", [-1, 0.5, 1e20])
def test_masks_hold_integers(tmp_path: Path, value: float) -> None:
    array = np.zeros((5, 4, 3), np.float32)
    array[0, 0, 0] = value
    with pytest.raises(RequestError, match="the label is not a label map"):
        read_mask(save_nifti(tmp_path / "m.nii.gz", array), "the label")


def test_an_empty_mask_is_a_mask(tmp_path: Path) -> None:
    assert not read_mask(save_nifti(tmp_path / "m.nii.gz", np.zeros((5, 4, 3), np.uint8)), "m").array.any()


def thin_slices(path: Path) -> Path:
    """A CT with slices closer together than its pixels, without a slice axis in the header."""
    array = np.arange(40 * 40 * 24, dtype=np.int16).reshape(40, 40, 24)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-0.98, -0.98, 0.625, 1])), path)
    return path


def test_another_plane_holds_the_same_voxels_under_another_key(tmp_path: Path) -> None:
    image = read_image(thin_slices(tmp_path / "ct.nii.gz"), "ct")
    assert (image.orientation.plane, image.slices) == ("axial", 24)
    assert image.in_plane("axial") is image
    coronal = image.in_plane("coronal")
    assert (coronal.slices, coronal.slice_shape) == (40, (24, 40))
    assert coronal.digest == image.digest  # the same picture, but other slices:
    assert coronal.volume.digest != image.volume.digest
    whole = read_image(thin_slices(tmp_path / "ct.nii.gz"), "ct")
    np.testing.assert_array_equal(coronal.scaled, replace(whole, plane="coronal").scaled)
    voxel = (3, 30, 20)
    one, other = np.asarray(coronal.scaled), np.asarray(image.scaled)
    assert one[coronal.locate(voxel)] == other[image.locate(voxel)]


def test_colour_is_cut_in_another_plane_too(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 3)).astype(np.uint8)
    image = dicom_files.image_of(array)
    np.testing.assert_array_equal(image.in_plane("sagittal").scaled, replace(image, plane="sagittal").scaled)


def test_a_plane_across_a_single_slice_is_refused() -> None:
    image = dicom_files.image_of(np.arange(30, dtype=np.uint8).reshape(6, 5, 1))
    with pytest.raises(
        RequestError, match=r"plane is 'coronal', but case of 6 x 5 x 1 voxels has only one slice.*axial"
    ):
        image.in_plane("coronal")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_header_of_a_file_states_the_slice_axis(tmp_path: Path, axis: int) -> None:
    stored = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([1, 1, 3, 1]))
    stored.header.set_dim_info(slice=axis)
    nibabel.save(stored, tmp_path / "v.nii.gz")
    assert read_image(tmp_path / "v.nii.gz", "v").orientation.axes[0] == axis
