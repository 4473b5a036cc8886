# SPDX-License-Identifier: Apache-2.0
"""A pack: the compressed slices of a whole store in one file, which needs only Pillow to decode.

It is a safetensors file. Its metadata entry "pack" is JSON: format version, split, side of the canvas, a description of
each data set, and the SHA-256 of everything. Data set number k has the tensors

- "k.slices": int32 (n, 7 + classes), a row for each slice, columns as in `COLUMNS`, then the pixels of each class;
- "k.images", "k.labels": uint8, the concatenated files of the slices.

An image is WebP (lossy, or lossless if that is smaller) of the slice scaled to [0, 1] and then to 8 bits, at its own
size or that of the canvas, whichever is smaller. If "source" is 1, it is the original JPEG file, and its intensities
must still be scaled. A label map is lossless WebP, or no bytes if it is empty.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kprism_model.data.slices import SliceSet, SliceStore, resize_labels, resize_picture
from kprism_model.intensity import scale_intensity
from kprism_model.preprocess import Geometry
from kprism_model.progress import progress_bar

FORMAT_VERSION = 1
COLUMNS = ("case", "slice", "content rows", "content columns", "source", "image bytes", "label bytes")
"""Columns of "k.slices" before the pixels of each class."""

_LOSSLESS_VALUES = 64  # an image with at most this many different values may be smaller without loss


@dataclass(frozen=True)
class PackedSlice:
    """A slice in a pack: the files of its image and labels; `row` as in `COLUMNS` up to "source"; pixels by class."""

    image: bytes
    label: bytes
    row: tuple[int, int, int, int, int]
    pixels: tuple[int, ...]


@dataclass(frozen=True)
class PackedSet:
    """The slices of one data set; `about` has the fields of a `SliceSet` without arrays, and the number of channels."""

    about: Mapping[str, Any]
    slices: Sequence[PackedSlice]

    @property
    def bytes(self) -> int:
        """Bytes of all images and labels."""
        return sum(len(part.image) + len(part.label) for part in self.slices)


def encode_image(image: NDArray[np.uint8], quality: int) -> bytes:
    """A grey (row, column) or colour (row, column, 3) image as WebP: lossy of `quality`, or lossless if smaller."""
    lossy = _webp(image, quality=quality)
    if len(np.unique(image)) > _LOSSLESS_VALUES:
        return lossy
    return min(lossy, _webp(image, lossless=True), key=len)


def encode_label(label: NDArray[np.uint8]) -> bytes:
    """Label indices (row, column) as lossless WebP; no bytes if all are 0."""
    return _webp(label, lossless=True) if label.any() else b""


def pack_bytes(sets: Sequence[PackedSet], *, split: str, size: int) -> bytes:
    """The content of a pack's file."""
    tensors: dict[str, NDArray[Any]] = {}
    for number, part in enumerate(sets):
        rows = [(*one.row, len(one.image), len(one.label), *one.pixels) for one in part.slices]
        tensors[f"{number}.slices"] = np.array(rows, dtype=np.int32)
        tensors[f"{number}.images"] = np.frombuffer(b"".join(one.image for one in part.slices), np.uint8)
        tensors[f"{number}.labels"] = np.frombuffer(b"".join(one.label for one in part.slices), np.uint8)
    about = {
        "format_version": FORMAT_VERSION,
        "split": split,
        "size": size,
        "columns": list(COLUMNS),
        "sets": [dict(part.about) for part in sets],
    }
    about["sha256"] = _digest(about, tensors)
    return save(tensors, {"pack": json.dumps(about, ensure_ascii=False)})


def read_pack(path: Path, *, progress: bool = True) -> SliceStore:
    """The store in a pack, decoded into memory on all cores; ValueError if the file is damaged or not a pack."""
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["pack"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if about["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {about['format_version']}, expected {FORMAT_VERSION}")
        expected = about.pop("sha256")
        if _digest(about, tensors) != expected:
            raise ValueError(f"its content does not have the SHA-256 {expected}")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a usable pack; write it again with `pack`: {error}") from error
    sets = tuple(
        _open_set(entry, number, tensors, about["size"], progress) for number, entry in enumerate(about["sets"])
    )
    return SliceStore(path, about["split"], about["size"], sets)


def _webp(image: NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", method=4, **options)
    return file.getvalue()


def _digest(about: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _open_set(
    about: Mapping[str, Any], number: int, tensors: Mapping[str, NDArray[Any]], size: int, progress: bool
) -> SliceSet:
    """Decode the slices of one data set, which `about` describes."""
    rows = tensors[f"{number}.slices"].astype(np.int64)
    images, labels = tensors[f"{number}.images"], tensors[f"{number}.labels"]
    shape = (len(rows), size, size)
    canvases, maps = np.zeros((*shape, about["channels"]), np.uint8), np.zeros(shape, np.uint8)
    files = zip(rows, _cut(images, rows[:, 5]), _cut(labels, rows[:, 6]), strict=True)

    def decode(item: tuple[int, tuple[NDArray[np.int64], bytes, bytes]]) -> None:
        place, (row, image, label) = item
        height, width, source = (int(value) for value in row[2:5])
        canvases[place, :height, :width] = _decode_image(image, about, (height, width), bool(source), size)
        if label:
            stored = np.asarray(Image.open(io.BytesIO(label)).convert("L"))
            maps[place, :height, :width] = resize_labels(stored, (height, width))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        decoded = threads.map(decode, enumerate(files))
        for _ in progress_bar(decoded, f"slices of {about['name']}", shown=progress, total=len(rows)):
            pass
    return SliceSet(
        name=about["name"],
        modality=about["modality"],
        anatomy=about["anatomy"],
        classes={int(value): name for value, name in about["classes"].items()},
        case_names=tuple(about["cases"]),
        patients=tuple(about["patients"]),
        images=canvases,
        labels=maps,
        case=rows[:, 0],
        number=rows[:, 1],
        content=rows[:, 2:4],
        pixels=rows[:, len(COLUMNS) :],
        weight=about["weight"],
        licence=about["licence"],
    )


def _decode_image(
    file: bytes, about: Mapping[str, Any], content: tuple[int, int], source: bool, size: int
) -> NDArray[np.uint8]:
    """The image part of a canvas, uint8 (rows, columns, channels)."""
    channels = about["channels"]
    image = np.asarray(Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB"))
    if not source and image.shape[:2] == content:
        return image.reshape(*content, channels)
    scaled = scale_intensity(image, modality=about["modality"]) if source else image.astype(np.float32) / 255
    return resize_picture(scaled, Geometry.fit((image.shape[0], image.shape[1]), size))[..., :channels]


def _cut(joined: NDArray[np.uint8], lengths: NDArray[np.int64]) -> Iterable[bytes]:
    """The single files in `joined`, which holds them one after the other."""
    ends = np.cumsum([0, *lengths]).tolist()
    return (joined[start:end].tobytes() for start, end in pairwise(ends))
