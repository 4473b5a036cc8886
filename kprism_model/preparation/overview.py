# SPDX-License-Identifier: Apache-2.0
"""A picture of some prepared cases with their labels, so that a wrong class or a flipped label is seen at once."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from kprism_model.data.datasets import read_picture
from kprism_model.files import write_bytes
from kprism_model.orientation import SliceOrientation
from kprism_model.preparation.records import CaseRecord

OVERVIEW_NAME = "overview.png"
_TILES, _COLUMNS, _SIDE, _CAPTION, _LEGEND = 12, 4, 256, 18, 20
_COLOURS = (
    *((213, 94, 0), (0, 158, 115), (0, 114, 178), (240, 228, 66), (204, 121, 167), (86, 180, 233), (230, 159, 0)),
    *((160, 82, 45), (127, 255, 0), (255, 99, 71), (138, 43, 226), (0, 206, 209), (255, 20, 147), (190, 190, 190)),
)


def write_overview(out: Path, classes: Mapping[int, str], records: Sequence[CaseRecord], *, seed: int) -> None:
    """Write `out`/overview.png: up to twelve cases, of a volume the slice with most of the label, and a legend."""
    shown = sorted((record for record in records if any(record.voxels.values())), key=lambda record: record.name)
    order = np.random.default_rng(seed).permutation(len(shown))[:_TILES]
    tiles = [_tile(out, shown[number]) for number in sorted(order.tolist())]
    if not tiles:
        return
    rows = -(-len(tiles) // _COLUMNS)
    entries_a_row = 3
    legend_rows = -(-len(classes) // entries_a_row)
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, rows * (_SIDE + _CAPTION) + legend_rows * _LEGEND), "black")
    draw = ImageDraw.Draw(sheet)
    for number, (name, picture) in enumerate(tiles):
        left, top = number % _COLUMNS * _SIDE, number // _COLUMNS * (_SIDE + _CAPTION)
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        draw.text((left + 4, top + _SIDE + 2), name[:40], fill="white")
    for place, (index, name) in enumerate(classes.items()):
        left = place % entries_a_row * (_COLUMNS * _SIDE // entries_a_row)
        top = rows * (_SIDE + _CAPTION) + place // entries_a_row * _LEGEND
        draw.rectangle((left + 4, top + 4, left + 16, top + 16), fill=_colour(index))
        draw.text((left + 22, top + 4), name[:50], fill="white")
    content = io.BytesIO()
    sheet.save(content, "png")
    write_bytes(out / OVERVIEW_NAME, content.getvalue())


def _colour(index: int) -> tuple[int, int, int]:
    return _COLOURS[(index - 1) % len(_COLOURS)]


def _tile(out: Path, record: CaseRecord) -> tuple[str, Image.Image]:
    """The case's name, and its slice with coloured outlines, at most `_SIDE` pixels in size."""
    image, labels = _slice(out, record)
    low, high = np.percentile(image, (1, 99))
    grey = ((image - low) / max(high - low, 1e-6)).clip(0, 1)
    picture = (np.repeat(grey[..., None], 3, axis=-1) if grey.ndim == 2 else grey) * 255
    factor = _SIDE / max(labels.shape)
    size = (max(1, round(labels.shape[1] * factor)), max(1, round(labels.shape[0] * factor)))
    pixels = np.asarray(Image.fromarray(picture.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)).copy()
    small = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    for index in np.unique(small[small > 0]).tolist():
        mask = small == index
        pixels[mask & ~ndimage.binary_erosion(mask, iterations=2)] = _colour(index)
    return record.name, Image.fromarray(pixels)


def _slice(out: Path, record: CaseRecord) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    if not record.spacing:
        step = max(1, min(record.shape) // (2 * _SIDE))  # of a large picture every so many pixels are enough
        picture = read_picture(out / record.image)[::step, ::step]
        return picture.astype(np.float32), read_picture(out / record.label)[::step, ::step]
    label: Any = nib.load(out / record.label)
    orientation = SliceOrientation.of(label.affine, label.shape)
    labels = orientation.to_slices(np.asarray(label.dataobj))
    number = int((labels > 0).sum(axis=(1, 2)).argmax())
    image: Any = nib.load(out / record.image)
    return orientation.to_slices(np.asarray(image.dataobj))[number].astype(np.float32), labels[number]
