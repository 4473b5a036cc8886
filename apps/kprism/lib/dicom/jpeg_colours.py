# SPDX-License-Identifier: Apache-2.0
"""Whether a JPEG stream holds red, green and blue, or brightness and two colours: headers of images get it wrong.

The stream says it itself, and viewers believe the stream (JFIF 1.02; T.872, 6.5.3); GDCM believes the header.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.encaps import generate_pixel_data_frame
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from lib.dicom.frames import frame_count

RGB, YBR = "RGB", "YBR_FULL_422"

FRAME_HEADERS = (0xC0, 0xC1, 0xC2)
APP0, APP14 = 0xE0, 0xEE


def true_colours(dataset: Dataset) -> str | None:
    """The photometric interpretation of a coloured JPEG image if its header says another one; None if it agrees."""
    is_jpeg = dataset.file_meta.get("TransferSyntaxUID") in (JPEGBaseline8Bit, JPEGExtended12Bit)
    if not is_jpeg or int(dataset.get("SamplesPerPixel") or 1) != 3:
        return None
    try:
        found = _colours(next(generate_pixel_data_frame(dataset.PixelData, frame_count(dataset))))
    except (ValueError, IndexError, StopIteration):
        return None  # whoever decodes it says what is wrong
    said = str(dataset.get("PhotometricInterpretation"))
    return found if found is not None and (found == RGB) != (said == RGB) else None


def _colours(stream: bytes) -> str | None:
    """What the markers of a stream say; None if they say nothing."""
    at = 2
    while stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        content = stream[at + 4 : at + 2 + length]
        if marker == APP0 and content[:4] == b"JFIF":
            return YBR
        if marker == APP14 and content[:5] == b"Adobe":
            return YBR if content[11] == 1 else RGB
        if marker in FRAME_HEADERS:
            components = [content[start : start + 2] for start in range(6, len(content), 3)]
            if bytes(component[0] for component in components) == b"RGB":
                return RGB
            return YBR if len({component[1] for component in components}) > 1 else None
        at += 2 + length
    return None
