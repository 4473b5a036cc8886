# SPDX-License-Identifier: Apache-2.0
"""A picture of some prepared cases with their labels, so that a wrong class or a flipped label is seen at once."""

from __future__ import annotations

import colorsys
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from kprism_model.data.datasets import read_picture
from kprism_model.files import write_bytes
from kprism_model.orientation import SliceOrientation
from kprism_model.preparation.images import PICTURE_ERRORS
from kprism_model.preparation.records import CaseRecord

OVERVIEW_NAME = "overview.png"
_KEY = "shows"  # of the text in the file that tells what it shows
_TILES, _COLUMNS, _SIDE, _GAP, _CAPTION, _LEGEND = 12, 4, 256, 8, 18, 20
_CAPTION_LENGTH = 38
_SMALL = 4  # a label whose height and width are less than this part of the picture's is shown enlarged
_COLOURS = (
    *((213, 94, 0), (0, 158, 115), (0, 114, 178), (240, 228, 66), (204, 121, 167), (86, 180, 233), (230, 159, 0)),
    *((160, 82, 45), (127, 255, 0), (255, 99, 71), (138, 43, 226), (0, 206, 209), (255, 20, 147), (190, 190, 190)),
)


def write_overview(out: Path, classes: Mapping[int, str], records: Sequence[CaseRecord], *, seed: int) -> None:
    """Write `out`/overview.png: up to twelve cases, of a volume the slice with most of the label, and a legend.

    A picture that shows the same already is left as it is, because whole volumes are read for it.
    """
    shown = sorted((record for record in records if any(record.voxels.values())), key=lambda record: record.name)
    order = np.random.default_rng(seed).permutation(len(shown))[:_TILES]
    chosen = [shown[number] for number in sorted(order.tolist())]
    content_key = json.dumps([list(classes.items()), [record.key for record in chosen]])
    if not chosen or _written_key(out / OVERVIEW_NAME) == content_key:
        return
    tiles = [_tile(out, record) for record in chosen]
    rows = -(-len(tiles) // _COLUMNS)
    width, height = _SIDE + _GAP, _SIDE + _CAPTION + _GAP
    entries_a_row = 3
    legend_rows = -(-len(classes) // entries_a_row)
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height + legend_rows * _LEGEND), "black")
    draw = ImageDraw.Draw(sheet)
    for number, (caption, picture) in enumerate(tiles):
        left, top = number % _COLUMNS * width, number // _COLUMNS * height
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        draw.text((left + 4, top + _SIDE + 2), caption, fill="white")
    for place, (index, name) in enumerate(classes.items()):
        left = place % entries_a_row * (sheet.width // entries_a_row)
        top = rows * height + place // entries_a_row * _LEGEND
        draw.rectangle((left + 4, top + 4, left + 16, top + 16), fill=_colour(index))
        draw.text((left + 22, top + 4), name[:50], fill="white")
    content = io.BytesIO()
    text = PngInfo()
    text.add_text(_KEY, content_key)
    sheet.save(content, "png", pnginfo=text)
    write_bytes(out / OVERVIEW_NAME, content.getvalue())


def _written_key(path: Path) -> str | None:
    """What a written overview shows; None if there is none."""
    try:
        with Image.open(path) as sheet:
            return str(sheet.info.get(_KEY))
    except PICTURE_ERRORS:
        return None


def _colour(index: int) -> tuple[int, int, int]:
    if index <= len(_COLOURS):
        return _COLOURS[index - 1]
    hue = index * 0.618034 % 1.0  # the golden ratio: neighbours differ most
    red, green, blue = colorsys.hsv_to_rgb(hue, (1.0, 0.55)[index % 2], (1.0, 0.75, 0.9)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def _tile(out: Path, record: CaseRecord) -> tuple[str, Image.Image]:
    """The case's name, and its slice with coloured outlines, at most `_SIDE` pixels in size."""
    image, labels = _slice(out, record)
    low, high = np.percentile(_thinned(image), (1, 99))
    window = _window(labels)
    image, labels = _thinned(image[window]).astype(np.float32), _thinned(labels[window])
    grey = ((image - low) / max(high - low, 1e-6)).clip(0, 1)
    picture = (np.repeat(grey[..., None], 3, axis=-1) if grey.ndim == 2 else grey) * 255
    factor = _SIDE / max(labels.shape)
    size = (max(1, round(labels.shape[1] * factor)), max(1, round(labels.shape[0] * factor)))
    pixels = np.asarray(Image.fromarray(picture.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)).copy()
    small = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    pixels[ndimage.binary_dilation(small > 0) & (small == 0)] = 0  # a dark rim: any colour stands out from any image
    for index in np.unique(small[small > 0]).tolist():
        mask = small == index
        pixels[mask & ~ndimage.binary_erosion(mask, iterations=2)] = _colour(index)
    is_part = window != (slice(None), slice(None))
    return _caption(record.name, " (a part)" if is_part else ""), Image.fromarray(pixels)


def _thinned(pixels: NDArray[Any]) -> NDArray[Any]:
    """Every so many pixels of a large picture, enough for a tile."""
    step = max(1, min(pixels.shape[:2]) // (2 * _SIDE))
    return pixels[::step, ::step]


def _caption(name: str, addition: str) -> str:
    """The name without its middle if it is long: the ends of names tell them apart."""
    room = _CAPTION_LENGTH - len(addition)
    if len(name) > room:
        name = f"{name[: room // 2 - 2]}...{name[-(room // 2 - 1) :]}"
    return name + addition


def _window(labels: NDArray[np.uint8]) -> tuple[slice, slice]:
    """All of a slice, or the part around a label that is small in it."""
    if not labels.any():
        return slice(None), slice(None)
    ranges = [np.flatnonzero(labels.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    lengths = [int(last - first) + 1 for first, last in ranges]
    if any(length * _SMALL > side for length, side in zip(lengths, labels.shape, strict=True)):
        return slice(None), slice(None)
    margin = max(lengths)
    rows, columns = (slice(max(0, int(first) - margin), int(last) + margin + 1) for first, last in ranges)
    return rows, columns


def _slice(out: Path, record: CaseRecord) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    if not record.spacing:
        return read_picture(out / record.image), read_picture(out / record.label)
    label: Any = nib.load(out / record.label)
    orientation = SliceOrientation.of(label.affine, label.shape)
    labels = orientation.to_slices(np.asarray(label.dataobj))
    number = int((labels > 0).sum(axis=(1, 2)).argmax())
    image: Any = nib.load(out / record.image)
    return orientation.to_slices(np.asarray(image.dataobj))[number], labels[number]
