# SPDX-License-Identifier: Apache-2.0
"""Reads PNG, JPEG, TIFF and BMP files of one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS
from lib.imaging.stored import Room, Stored

PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is that of photographs; `Room` has those of the server


def read_picture(path: Path, room: Room) -> Stored:
    """The pixels of a picture (column, row[, 3]); RequestError, or what Pillow raises, if it cannot be read."""
    # Pillow chooses the decoder by content, not by name; other decoders must not run.
    with Image.open(path, formats=PICTURE_FORMATS) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            raise RequestError(f"holds {frames} pictures; expected one")
        dtype = np.dtype(np.float32 if picture.mode[0] == "F" else np.int32 if picture.mode[0] == "I" else np.uint8)
        plain = picture.mode in ("L", "RGB", "F") or picture.mode.startswith("I")
        channels = 1 if picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I") else 3
        room.check((*picture.size, channels), dtype)
        room.check_decoded((*picture.size, channels * dtype.itemsize))
        pixels = np.asarray(picture if plain else picture.convert("L" if picture.mode in ("1", "LA") else "RGB"))
    rows_first = pixels.T if pixels.ndim == 2 else pixels.transpose(2, 1, 0)  # (channel,) column, row
    array = room.allocate(rows_first.shape, pixels.dtype)
    array[:] = rows_first
    return Stored(
        array if pixels.ndim == 2 else np.moveaxis(array, 0, -1),
        LPS_TO_RAS.copy(),
        colour=pixels.ndim == 3,
        placed=False,
    )
