# SPDX-License-Identifier: Apache-2.0
"""A contact sheet: the images with the lowest Dice, with their true and predicted outlines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

TILE_PIXELS = 192
CAPTION_PIXELS = 52
LEGEND_PIXELS = 18
COLUMNS = 9
OUTLINE_PIXELS = 2
TRUE_COLOUR = (0, 158, 115)  # bluish green and vermilion stay apart for colour-blind readers
PREDICTED_COLOUR = (213, 94, 0)


@dataclass(frozen=True, eq=False)
class WorstCase:
    """A slice that was segmented badly: image (row, column[, 3]) in [0, 1], masks (row, column), its Dice."""

    dataset: str
    class_name: str
    mode: str
    case: str
    slice_number: int
    score: float
    image: NDArray[np.float32]
    target: NDArray[np.bool_]
    prediction: NDArray[np.bool_]

    def describe(self) -> dict[str, Any]:
        """All fields except the pictures."""
        names = ("dataset", "class_name", "mode", "case", "slice_number", "score")
        return {name: getattr(self, name) for name in names}


def contact_sheet(cases: Sequence[WorstCase]) -> bytes:
    """A PNG with a captioned tile for each case; the true outline is green, the predicted one orange."""
    rows = -(-len(cases) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE_PIXELS, LEGEND_PIXELS + rows * (TILE_PIXELS + CAPTION_PIXELS)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 2), "true outline", fill=TRUE_COLOUR)
    draw.text((94, 2), "predicted outline", fill=PREDICTED_COLOUR)
    for number, case in enumerate(cases):
        left, top = number % COLUMNS * TILE_PIXELS, LEGEND_PIXELS + number // COLUMNS * (TILE_PIXELS + CAPTION_PIXELS)
        sheet.paste(_tile(case), (left, top))
        where = f"{case.case} [{case.slice_number}]"
        captions = (f"{case.score:.2f} {case.mode}", f"{case.dataset}: {case.class_name}", where)
        for line, text in enumerate(captions):
            draw.text((left + 4, top + TILE_PIXELS + 2 + 15 * line), text[:34], fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _tile(case: WorstCase) -> Image.Image:
    height, width = case.target.shape
    scale = (TILE_PIXELS - 4) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray((case.image * 255).round().astype(np.uint8)).convert("RGB").resize(size)
    pixels = np.array(picture)
    for mask, colour in ((case.target, TRUE_COLOUR), (case.prediction, PREDICTED_COLOUR)):
        shown = np.array(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        pixels[shown & ~ndimage.binary_erosion(shown, iterations=OUTLINE_PIXELS)] = colour
    return Image.fromarray(pixels)
