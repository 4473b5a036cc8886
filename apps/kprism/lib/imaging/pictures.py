# SPDX-License-Identifier: Apache-2.0
"""Reads PNG, JPEG, TIFF and BMP files of one picture.

A JPEG of a telephone holds more than one: behind the picture come a preview, the depth, or what a brighter screen
shows. As every viewer does, we read the first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS
from lib.imaging.stored import Room, Stored, kept_as

PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

JPEGS = ("JPEG", "MPO")
"""Pillow's names of JPEG files of one picture and of several."""

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is that of photographs; `Room` has those of the server


EXIF_ORIENTATION = 0x0112
"""The tag of EXIF and TIFF that says how a picture has to be turned to be upright; cameras and telephones set it."""

UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda rows: rows,
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: rows.swapaxes(0, 1),
    6: lambda rows: rows.swapaxes(0, 1)[:, ::-1],
    7: lambda rows: rows[::-1, ::-1].swapaxes(0, 1),
    8: lambda rows: rows.swapaxes(0, 1)[::-1],
}
"""Orientation -> the pixels (row, column[, channel]) of the upright picture."""


def read_picture(path: Path, room: Room, *, indices: bool = False) -> Stored:
    """The pixels of a picture (column, row[, 3]), upright; RequestError, or what Pillow raises, if it cannot be read.

    With `indices`, as label maps are stored, pixels of a palette are its indices and those of one bit are 0 and 1; what
    changes values is refused.
    """
    # Pillow chooses the decoder by content, not by name; other decoders must not run. It gets no name, because it maps
    # a named TIFF into memory, and takes rows for columns in one that lies on its side.
    with path.open("rb") as stream, Image.open(stream, formats=PICTURE_FORMATS) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format not in JPEGS:
            raise RequestError(f"holds {frames} pictures; expected one")
        if indices:
            _check_exact(picture)
        dtype = np.dtype(np.float32 if picture.mode[0] == "F" else np.int32 if picture.mode[0] == "I" else np.uint8)
        one_channel = picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I")
        channels = 1 if one_channel or (indices and picture.mode in ("P", "PA")) else 3
        room.check((*picture.size, channels), dtype)
        room.check_decoded((*picture.size, channels * dtype.itemsize))
        orientation = _orientation(picture)
        picture.load()
        turned = orientation if orientation in (1, _orientation(picture)) else 1  # Pillow turns a TIFF by itself
        rows = UPRIGHT[turned](_pixels(picture, indices))
    rows_first = rows.T if rows.ndim == 2 else rows.transpose(2, 1, 0)  # (channel,) column, row
    array = room.allocate(rows_first.shape, kept_as(rows.dtype))
    array[:] = rows_first
    return Stored(
        array if rows.ndim == 2 else np.moveaxis(array, 0, -1),
        LPS_TO_RAS.copy(),
        colour=rows.ndim == 3,
        placed=False,
        exif_orientation=orientation,
    )


def _check_exact(picture: Image.Image) -> None:
    """RequestError for a label map whose values are not, or would not be read as, those that were written."""
    if picture.format in JPEGS or picture.info.get("compression") in ("jpeg", "tiff_jpeg"):
        raise RequestError(
            "is a JPEG, whose compression changes the values of a label map; expected a file without loss, such as PNG"
        )
    codings = [str(tile[3]) for tile in getattr(picture, "tile", [])]
    if not picture.mode.startswith("I") and any(";16" in coding for coding in codings):
        raise RequestError(
            "is a label map of several channels with 16 bits, of which only 8 can be read; expected one channel"
        )


def _pixels(picture: Image.Image, indices: bool) -> NDArray[Any]:
    """The pixels (row, column[, 3]) of a loaded picture as it is stored."""
    mode = picture.mode
    if indices and mode in ("P", "PA"):
        pixels = np.asarray(picture)
        return pixels if mode == "P" else pixels[..., 0]
    if indices and mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if mode in ("L", "RGB", "F") or mode.startswith("I"):
        return np.asarray(picture)
    return np.asarray(picture.convert("L" if mode in ("1", "LA") else "RGB"))


def _orientation(picture: Image.Image) -> int:
    """The orientation that the picture's file states; 1 if it states none, or a value that does not exist."""
    try:
        value = picture.getexif().get(EXIF_ORIENTATION, 1)
    except (
        SyntaxError,
        ValueError,
        LookupError,
        TypeError,
        OSError,
        struct.error,
    ):  # the pixels can be read all the same
        return 1
    return int(value) if value in UPRIGHT else 1
