# SPDX-License-Identifier: Apache-2.0
"""Files that say one thing in their name or header and another in their content: the right voxels, or a sentence."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.completeness import looks_complete
from lib.imaging.reading import read_image, read_mask
from lib.imaging.writing import ResultFormat, write_mask
from tests.interop.other_readers import by_simpleitk
from tests.interop.small_files import AFFINE, ORIENTATIONS, SHAPE, save_nifti, stored, voxels
from tests.interop.test_pictures import UPRIGHT

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56), np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
LABELS = np.random.default_rng(2).integers(0, 4, (40, 56), np.uint8)
ORIENTATION = 0x0112

TIFFS = {
    "L": (Image.fromarray(PIXELS), PIXELS),
    "P": (Image.fromarray(COLOURS).quantize(17), None),
    "I;16": (Image.fromarray(PIXELS.astype(np.uint16) * 257), PIXELS.astype(np.uint16) * 257),
    "RGB": (Image.fromarray(COLOURS), COLOURS),
    "RGBA": (Image.fromarray(np.dstack([COLOURS, PIXELS]), "RGBA"), COLOURS),
    "CMYK": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
    "F": (Image.fromarray(PIXELS.astype(np.float32) / 4), PIXELS.astype(np.float32) / 4),
}


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("mode", TIFFS)
def test_a_tiff_on_its_side_is_upright_however_it_is_stored(
    tmp_path: Path, mode: str, value: int, compression: str
) -> None:
    picture, pixels = TIFFS[mode]
    picture.save(tmp_path / "p.tif", tiffinfo={ORIENTATION: value}, compression=compression)
    image = read_image(tmp_path / "p.tif", "the picture")
    expected = UPRIGHT[value](np.asarray(picture.convert("RGB")) if pixels is None else pixels)
    np.testing.assert_array_equal(image.array[:, :, 0].swapaxes(0, 1), expected)
    if mode in ("L", "P"):
        label = read_mask(tmp_path / "p.tif", "the label").array[:, :, 0].T
        np.testing.assert_array_equal(label, UPRIGHT[value](np.asarray(picture)))


@pytest.mark.parametrize("value", [1, 6, 8])
@pytest.mark.parametrize("more", [1, 2])
def test_of_a_telephone_s_jpeg_the_first_picture_counts(tmp_path: Path, value: int, more: int) -> None:
    """Others behind it are previews, depths and gains, which no viewer shows."""
    exif = Image.Exif()
    exif[ORIENTATION] = value
    others = [Image.fromarray(COLOURS[::-1])] * more
    Image.fromarray(COLOURS).save(tmp_path / "p.jpg", format="MPO", save_all=True, append_images=others, exif=exif)
    Image.fromarray(COLOURS).save(tmp_path / "first.jpg")
    with Image.open(tmp_path / "p.jpg") as picture:
        assert (picture.format, picture.n_frames) == ("MPO", more + 1)  # type: ignore[attr-defined]
    image = read_image(tmp_path / "p.jpg", "the picture")
    assert image.exif_orientation == value
    expected = UPRIGHT[value](np.asarray(Image.open(tmp_path / "first.jpg")))
    np.testing.assert_array_equal(image.array[:, :, 0].swapaxes(0, 1), expected)


def deep_png(path: Path, channels: int, values: np.ndarray) -> None:
    """A PNG whose channels have 16 bits, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = np.repeat(values[..., None], channels, axis=-1).astype(">u2")
    head = struct.pack(">IIBBBBB", *values.shape[::-1], 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("factor", [1, 300])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colours_are_no_label_map(tmp_path: Path, channels: int, factor: int) -> None:
    """Eight of their bits can be read: small values would be lost, large ones would be others."""
    deep_png(tmp_path / "p.png", channels, LABELS.astype(int) * factor)
    with pytest.raises(RequestError, match="the label is a label map of several channels with 16 bits"):
        read_mask(tmp_path / "p.png", "the label")


@pytest.mark.parametrize("name", ["l.jpg", "l.JPEG", "l.png", "l.tif"])
@pytest.mark.parametrize("quality", [95, 100])
def test_a_label_map_with_lossy_compression_is_refused(tmp_path: Path, name: str, quality: int) -> None:
    if name.endswith(".tif"):
        Image.fromarray(LABELS).save(tmp_path / name, compression="jpeg", quality=quality)
    else:
        Image.fromarray(LABELS).save(tmp_path / name, format="JPEG", quality=quality)
    with pytest.raises(RequestError, match="the label is a JPEG, whose compression changes the values"):
        read_mask(tmp_path / name, "the label")
    assert read_image(tmp_path / name, "the image").grid == (56, 40, 1)


def volume(path: Path, **fields: object) -> bytes:
    """A NIfTI file as it stands, with other fields in its header."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_sform(AFFINE, 1)
    for name, value in fields.items():
        header[name] = value
    content = bytes(header.binaryblock) + bytes(4) + voxels().tobytes(order="F")
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("name", ["v.nii.gz", "v.NII.GZ", "v.Nii.Gz"])
def test_a_file_that_a_browser_unpacked_is_read(tmp_path: Path, name: str) -> None:
    """Its name says that it is compressed, its content is not."""
    volume(tmp_path / name)
    assert looks_complete(tmp_path / name)
    image = read_image(tmp_path / name, "the image")
    np.testing.assert_array_equal(image.values, voxels())
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-10])
    assert not looks_complete(tmp_path / name)
    with pytest.raises(RequestError, match=r"not a readable \.nii\.gz file: the file ends after 410 of"):
        read_image(tmp_path / name, "the image")


@pytest.mark.parametrize("begin", [0, 100, 348, 351])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_voxels_do_not_begin_inside_of_the_header(tmp_path: Path, suffix: str, begin: int) -> None:
    """The header itself would be the first voxels."""
    content = volume(path := tmp_path / f"v{suffix}", vox_offset=begin)
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    assert not looks_complete(path)
    with pytest.raises(RequestError, match=f"the image claims that its voxels begin at byte {begin}, inside of"):
        read_image(path, "the image")


def test_what_is_no_nifti_file_is_told(tmp_path: Path) -> None:
    content = volume(tmp_path / "v.nii")
    nibabel.save(nibabel.Nifti1Pair(voxels(), AFFINE), tmp_path / "pair.hdr")
    for name, other, reason in (
        ("packed.nii", gzip.compress(content), "is compressed with gzip, but its name does not end in .gz"),
        ("twice.nii.gz", gzip.compress(gzip.compress(content)), "does not begin with a NIfTI header"),
        ("page.nii.gz", b"<html>404: file not found</html>" * 20, "does not begin with a NIfTI header"),
        ("pair.nii", (tmp_path / "pair.hdr").read_bytes(), "is the header of a pair of files, .hdr and .img"),
        ("pair.nii.gz", gzip.compress((tmp_path / "pair.hdr").read_bytes()), "is the header of a pair of files"),
    ):
        (tmp_path / name).write_bytes(other)
        assert not looks_complete(tmp_path / name)
        with pytest.raises(RequestError, match=f"^the image .*{reason}"):
            read_image(tmp_path / name, "the image")


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.Nii"])
def test_both_versions_in_both_byte_orders(
    tmp_path: Path, name: str, kind: type[nibabel.Nifti1Image], endian: str
) -> None:
    header = kind.header_class(endianness=endian)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(endian))
    content = kind(voxels(), AFFINE, header).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    image = read_image(tmp_path / name, "the image")
    np.testing.assert_array_equal(image.values, voxels())
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("single", [0, 1, 2])
@pytest.mark.parametrize("row", [0, 5, 11, 17, 24, 33, 40, 47])
def test_a_mask_in_png_has_the_columns_and_rows_of_the_file(tmp_path: Path, row: int, single: int) -> None:
    """A mask of one slice comes back as it went out, however the image lies in the patient."""
    array, affine = stored("int16", ORIENTATIONS[row])
    array = array.take([1], axis=single)
    save_nifti(tmp_path / "v.nii", array, affine)
    image = read_image(tmp_path / "v.nii", "the image")
    labels = np.random.default_rng(row).integers(0, 3, image.grid, np.uint8)
    form = ResultFormat.parse({"result_extension": ".png"}, image)
    mask = write_mask(SliceMap.of(labels, image.orientation), image, form).rename(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(Image.open(mask)).T, labels.squeeze(single))
    np.testing.assert_array_equal(image.on_grid(read_mask(mask, "the mask"), "the mask"), labels)


FIELDS = {
    "cell": {"spacings": [0.75, 0.875, 2.5], "axis mins": [1.0, -2, 3], "centerings": ["cell"] * 3},
    "node": {"spacings": [0.75, 0.875, 2.5], "axis mins": [1.0, -2, 3], "centerings": ["node"] * 3},
    "neither": {"spacings": [0.75, 0.875, 2.5], "axis mins": [1.0, -2, 3]},
    "range": {"axis mins": [1.0, -2, 3], "axis maxs": [8.0, 4, 9]},
    "none": {"spacings": [0.75, 0.875, 2.5]},
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".mha"])
def test_minima_of_axes_place_an_nrrd_without_a_space(tmp_path: Path, name: str, extension: str) -> None:
    nrrd.write(str(tmp_path / "v.nrrd"), voxels(), dict(FIELDS[name]), index_order="F")
    image, theirs = read_image(tmp_path / "v.nrrd", "the image"), by_simpleitk(tmp_path / "v.nrrd")
    np.testing.assert_allclose(image.affine, theirs.affine, atol=1e-6)
    labels = np.random.default_rng(3).integers(0, 3, SHAPE, np.uint8)
    form = ResultFormat.parse({"result_extension": extension}, image)
    mask = write_mask(SliceMap.of(labels, image.orientation), image, form).rename(tmp_path / f"mask{extension}")
    np.testing.assert_allclose(by_simpleitk(mask).affine, theirs.affine, atol=1e-4)
    np.testing.assert_array_equal(image.on_grid(read_mask(mask, "the mask"), "the mask"), labels)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("value", [2**24 + 1, 204818093, 614454277])
def test_large_values_are_exact_or_refused(tmp_path: Path, suffix: str, value: int) -> None:
    """Atlases number structures up to a thousand million; 32-bit floats hold every whole number to 16777216 only."""
    labels = np.where(voxels() > 100, value, 0)
    for dtype in (np.uint32, np.float64):
        path = tmp_path / f"{np.dtype(dtype).name}{suffix}"
        volume = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels.astype(dtype).T))
        SimpleITK.WriteImage(volume, str(path))
    mask = read_mask(tmp_path / f"uint32{suffix}", "the label")
    assert mask.file_labels is not None and mask.file_labels.values == (value,)
    np.testing.assert_array_equal(mask.array, labels > 0)
    with pytest.raises(
        RequestError, match=r"the label holds \d+ as a floating-point number; expected values below 1677"
    ):
        read_mask(tmp_path / f"float64{suffix}", "the label")


@pytest.mark.parametrize("local", ["Local", "local", "LOCAL"])
@pytest.mark.parametrize("beside", ["v.raw", "./v.raw"])
def test_metaimage_names_its_voxels_in_every_way_that_itk_knows(tmp_path: Path, local: str, beside: str) -> None:
    volume = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels().T))
    SimpleITK.WriteImage(volume, str(tmp_path / "v.mha"))
    head, _, body = (tmp_path / "v.mha").read_bytes().partition(b"ElementDataFile = LOCAL\n")
    (tmp_path / "one.mha").write_bytes(head + f"ElementDataFile = {local}\n".encode() + body)
    (tmp_path / "two.mhd").write_bytes(head + f"ElementDataFile = {beside}\n".encode())
    (tmp_path / "v.raw").write_bytes(body)
    for name in ("one.mha", "two.mhd"):
        assert looks_complete(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name, "the image").values, voxels())
        np.testing.assert_array_equal(by_simpleitk(tmp_path / name).array, voxels())
