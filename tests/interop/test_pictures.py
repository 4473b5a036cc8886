# SPDX-License-Identifier: Apache-2.0
"""Pictures of every kind have the pixels that Pillow shows, upright; as label maps they have the values meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.reading import read_image, read_mask
from lib.imaging.writing import ResultFormat, write_mask
from tools.import_folder import main as import_folder

GREY = np.random.default_rng(0).permutation(np.arange(7 * 9)).reshape(7, 9).astype(np.uint8) * 4
"""Rows and columns, each pixel of another value."""

LABELS = (GREY // 4 % 3).astype(np.uint8)
ORIENTATION = 0x0112


UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""What EXIF says about an orientation; Pillow itself mistakes columns for rows in a TIFF that it maps into memory."""


def served(path: Path) -> np.ndarray:
    """The pixels (row, column[, 3]) that we read."""
    return np.asarray(read_image(path, "the picture").array)[:, :, 0].swapaxes(0, 1)


def with_orientation(path: Path, value: int, picture: Image.Image) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "colour.png", "colour.jpg", "deep.png", "deep.tif"])
def test_pictures_are_read_upright(tmp_path: Path, name: str, value: int) -> None:
    picture = Image.fromarray(np.dstack([GREY, GREY.T.reshape(7, 9), 255 - GREY]) if "colour" in name else GREY)
    if "deep" in name:
        picture = Image.fromarray(GREY.astype(np.uint16) * 257)
    path = with_orientation(tmp_path / name, value, picture)
    pixels = np.asarray(Image.open(path) if name.endswith(".jpg") else picture)
    upright = UPRIGHT[value](pixels)
    np.testing.assert_array_equal(served(path), upright)
    image = read_image(path, "the picture")
    assert image.exif_orientation == value
    labels = np.zeros(image.grid, np.uint8)
    row, column = np.argwhere(upright == upright.max())[0][:2]
    labels[column, row, 0] = 1
    form = ResultFormat.parse({"result_extension": ".png"}, image)
    mask = write_mask(SliceMap.of(labels, image.orientation), image, form).rename(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), labels[:, :, 0].T)
    assert image.locate((int(column), int(row), 0)) == (0, row, column)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(tmp_path: Path, value: int) -> None:
    path = with_orientation(tmp_path / "p.png", value, Image.fromarray(GREY))
    np.testing.assert_array_equal(served(path), GREY)


def test_a_label_on_the_grid_of_a_picture_that_lies_on_its_side(tmp_path: Path) -> None:
    """One of the upright picture is taken, one of the picture as it is stored is refused with the reason."""
    image = read_image(with_orientation(tmp_path / "p.jpg", 6, Image.fromarray(GREY)), "the picture")
    Image.fromarray(LABELS).save(tmp_path / "stored.png")
    Image.fromarray(np.rot90(LABELS, -1)).save(tmp_path / "upright.png")
    upright = image.on_grid(read_mask(tmp_path / "upright.png", "the label"), "the label")
    np.testing.assert_array_equal(upright[:, :, 0].T, np.rot90(LABELS, -1))
    with pytest.raises(RequestError, match=r"7 x 9 x 1 .*EXIF orientation 6"):
        image.on_grid(read_mask(tmp_path / "stored.png", "the label"), "the label")


@pytest.mark.parametrize("value", [3, 6, 7])
def test_imported_pictures_are_upright(tmp_path: Path, value: int) -> None:
    from pydicom import dcmread

    (tmp_path / "in").mkdir()
    path = with_orientation(tmp_path / "in" / "p.png", value, Image.fromarray(GREY))
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    assert import_folder([str(path), "--to", str(tmp_path / "out")]) == 0
    [file] = (tmp_path / "out").rglob("*.dcm")
    np.testing.assert_array_equal(dcmread(file).pixel_array, upright)


RGB = np.dstack([GREY, GREY[::-1], 255 - GREY])
UNUSUAL = {
    "16-bit.png": (Image.fromarray(GREY.astype(np.uint16) * 200), GREY.astype(np.uint16) * 200),
    "16-bit.tif": (Image.fromarray(GREY.astype(np.uint16) * 200), GREY.astype(np.uint16) * 200),
    "32-bit.tif": (Image.fromarray(GREY.astype(np.float32) / 7 - 3), GREY.astype(np.float32) / 7 - 3),
    "1-bit.png": (Image.fromarray(GREY > 99), (GREY > 99) * np.uint8(255)),
    "1-bit.tif": (Image.fromarray(GREY > 99), (GREY > 99) * np.uint8(255)),
    "la.png": (Image.fromarray(np.dstack([GREY, GREY]), "LA"), GREY),
    "rgba.png": (Image.fromarray(np.dstack([RGB, GREY]), "RGBA"), RGB),
    "palette.png": (Image.fromarray(RGB).quantize(256), RGB),
    "palette.bmp": (Image.fromarray(RGB).quantize(256), RGB),
    "cmyk.tif": (Image.fromarray(RGB).convert("CMYK"), RGB),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_pictures_keep_their_values(tmp_path: Path, name: str) -> None:
    picture, expected = UNUSUAL[name]
    picture.save(tmp_path / name)
    np.testing.assert_array_equal(served(tmp_path / name), expected)


def test_a_jpeg_of_inks_is_as_pillow_shows_it(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    with Image.open(tmp_path / "cmyk.jpg") as picture:
        assert picture.mode == "CMYK"
        np.testing.assert_array_equal(served(tmp_path / "cmyk.jpg"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("values", [GREY, RGB, GREY.astype(np.uint16) * 200])
def test_a_big_tiff(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "big.tif", big_tiff=True)
    assert (tmp_path / "big.tif").read_bytes()[2] == 43
    np.testing.assert_array_equal(served(tmp_path / "big.tif"), values)


@pytest.mark.parametrize("pages", [2, 3])
def test_pages_are_refused_by_number(tmp_path: Path, pages: int) -> None:
    page = Image.fromarray(GREY)
    page.save(tmp_path / "p.tif", save_all=True, append_images=[page] * (pages - 1))
    with pytest.raises(RequestError, match=f"the picture holds {pages} pictures; expected one"):
        read_image(tmp_path / "p.tif", "the picture")


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, broken: float) -> None:
    values = GREY.astype(np.float32)
    values[2, 5] = broken
    Image.fromarray(values).save(tmp_path / "p.tif")
    with pytest.raises(RequestError, match=r"the picture has 1 voxels that are not finite .*\[5, 2, 0\]"):
        read_image(tmp_path / "p.tif", "the picture")


def voc(labels: np.ndarray) -> Image.Image:
    """Labels as indices of a palette, as the VOC data sets have them."""
    picture = Image.fromarray(labels, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * (253 * 3))
    return picture


LABEL_FILES = {
    "palette.png": (voc(LABELS), LABELS),
    "palette.bmp": (voc(LABELS), LABELS),
    "palette.tif": (voc(LABELS), LABELS),
    "rgb.png": (Image.fromarray(np.dstack([LABELS] * 3)), LABELS),
    "rgba.png": (Image.fromarray(np.dstack([LABELS] * 3 + [GREY]), "RGBA"), LABELS),
    "la.png": (Image.fromarray(np.dstack([LABELS, GREY]), "LA"), LABELS),
    "1-bit.png": (Image.fromarray(LABELS > 0), LABELS > 0),
    "16-bit.png": (Image.fromarray(LABELS.astype(np.uint16)), LABELS),
    "white.png": (Image.fromarray(np.where(LABELS > 0, 255, 0).astype(np.uint8)), (LABELS > 0) * 255),
    "float.tif": (Image.fromarray(LABELS.astype(np.float32) + np.float32(1.5e-5)), LABELS),
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_pictures_as_label_maps(tmp_path: Path, name: str) -> None:
    picture, expected = LABEL_FILES[name]
    picture.save(tmp_path / name)
    mask = read_mask(tmp_path / name, "the label")
    assert mask.array.dtype == np.uint8
    np.testing.assert_array_equal(mask.array[:, :, 0].T, expected)


COLOURED = np.dstack([LABELS] * 3)
COLOURED[3, 4] = 128, 0, 0

REFUSED = {
    "colour.png": (Image.fromarray(COLOURED), r"is in colour: it is \[128, 0, 0\] at \[4, 3, 0\]"),
    "alpha.png": (Image.fromarray(np.dstack([COLOURED, GREY]), "RGBA"), r"is in colour: it is \[128, 0, 0\]"),
    "half.tif": (Image.fromarray(LABELS * np.float32(0.5)), r"it is 0.5 at \["),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pictures_that_are_no_label_maps(tmp_path: Path, name: str) -> None:
    picture, sentence = REFUSED[name]
    picture.save(tmp_path / name)
    with pytest.raises(RequestError, match=f"the label .*{sentence}.*one integer from 0"):
        read_mask(tmp_path / name, "the label")
