# SPDX-License-Identifier: Apache-2.0
"""High-throughput JPEG 2000 (HTJ2K, PS3.5 A.4.11), which neither GDCM nor pydicom knows; OpenJPEG decodes it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import decode
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset
from pydicom.encaps import generate_pixel_data_frame

from lib.dicom.frames import frame_count

NAMES = {
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000, lossless only",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 with RPCL options, lossless only",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
}
"""The transfer syntaxes."""

for _uid, _name in NAMES.items():  # pydicom 2 would not take them for transfer syntaxes, and write no such file
    UID_dictionary.setdefault(_uid, (_name, "Transfer Syntax", "", "", ""))


def stored_values(dataset: Dataset) -> NDArray[Any]:
    """The stored values (frame, row, column[, 3]) of an image; ValueError if they cannot be decoded."""
    streams = generate_pixel_data_frame(dataset.PixelData, frame_count(dataset))
    try:
        planes: NDArray[Any] = np.stack([decode(io.BytesIO(stream)) for stream in streams])
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    if int(dataset.get("PixelRepresentation") or 0) == 1 and planes.dtype.kind == "u":
        return _signed(planes, int(dataset.get("BitsStored") or planes.dtype.itemsize * 8))
    return planes


def _signed(planes: NDArray[Any], bits: int) -> NDArray[Any]:
    """Values of so many bits, written as if they had no sign."""
    shift = planes.dtype.itemsize * 8 - bits
    signed: NDArray[Any] = np.left_shift(planes, shift).view(f"i{planes.dtype.itemsize}") >> shift
    return signed
