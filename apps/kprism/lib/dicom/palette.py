# SPDX-License-Identifier: Apache-2.0
"""Colour by a palette (PS3.3, C.7.6.3.1.5 and C.7.9): GDCM reads neither segmented ones nor those with an offset."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.util import apply_color_lut

COLOURS = ("Red", "Green", "Blue")


def coloured(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Stored values (frame, row, column) as colours (frame, row, column, 3); of 16 bits a channel the upper eight.

    Values beyond the palette get its first or its last colour. ValueError if the image has no palette.
    """
    descriptor = dataset.get("RedPaletteColorLookupTableDescriptor")
    if not descriptor or len(descriptor) != 3:
        raise ValueError("it has no palette, though its colours are from one")
    count, first = int(descriptor[0]) or 65536, int(descriptor[1])
    if "RedPaletteColorLookupTableData" in dataset:
        table = np.stack([_entries(dataset, colour, count) for colour in COLOURS], axis=-1)
    else:
        table = apply_color_lut(np.arange(count) + first, dataset)[:, :3]
    table = table >> 8 if table.max() > 255 else table
    colours: NDArray[np.uint8] = table.astype(np.uint8)[np.clip(values.astype(np.int64) - first, 0, len(table) - 1)]
    return colours


def _entries(dataset: Dataset, colour: str, count: int) -> NDArray[Any]:
    """The values of one channel; entries of eight bits may be kept in 16, whatever is said of them."""
    data: bytes = dataset.get(f"{colour}PaletteColorLookupTableData") or b""
    wide = "<u2" if dataset.is_little_endian else ">u2"
    kind = np.dtype(wide if len(data) >= 2 * count else np.uint8)
    if len(data) < count:
        raise ValueError(f"its palette has {len(data)} bytes for {count} colours")
    return np.frombuffer(data, kind, count)
