# SPDX-License-Identifier: Apache-2.0
"""Segments of 3D Slicer's `.seg.nrrd`, which its header names, as an index map.

The segments of one layer have different values. Segments that overlap are in several layers. An index map has one
value for each voxel: there the smaller segment wins, so that a lesion stays visible in its organ, and a warning names
the loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.label_maps import MAX_LABELS
from lib.imaging.mapped import Allocate

OFFSET = "Segmentation_ReferenceImageExtentOffset"


@dataclass(frozen=True)
class Segment:
    """A segment: its name, the layer it is in, and its value there."""

    name: str
    layer: int
    value: int


def segments_in(header: Mapping[str, Any]) -> list[Segment]:
    """The segments that a NRRD header lists, in its order; none for a file of another kind.

    RequestError for a layer or value that is no number. Old files state neither: each segment is a layer.
    """
    found: list[Segment] = []
    while any(f"Segment{len(found)}_{key}" in header for key in ("ID", "Name", "LabelValue")):
        start = f"Segment{len(found)}_"
        name = str(header.get(f"{start}Name") or header.get(f"{start}ID") or f"segment {len(found) + 1}")
        layer = _number(header, f"{start}Layer", len(found))
        found.append(Segment(name, layer, _number(header, f"{start}LabelValue", 1)))
    return found


def index_map(
    array: NDArray[Any], segments: Sequence[Segment], header: Mapping[str, Any], allocate: Allocate
) -> tuple[NDArray[Any], FileLabels]:
    """The segments of an array (i, j[, k][, layer]) as an index map, and what the file says about its values.

    One layer stays as it is. The segments of several are numbered from 1. RequestError for a segment that the file
    does not hold, voxels without a segment and too many segments.
    """
    offset = _offset(header)
    if array.ndim < 4 or array.shape[3] == 1:
        if any(segment.layer for segment in segments):
            raise RequestError(
                f"lists segments of layer {max(segment.layer for segment in segments)}, but has one layer"
            )
        names: dict[int, str] = {}
        for segment in segments:
            if segment.value in names and names[segment.value] != segment.name:
                raise RequestError(
                    f"names the value {segment.value} both {names[segment.value]!r} and {segment.name!r}; expected one"
                )
            names[segment.value] = segment.name
        return array, FileLabels(names=names, offset=offset)
    if array.ndim > 4:
        raise RequestError(f"has {array.ndim} axes; expected segments in at most 4")
    if len(segments) > MAX_LABELS:
        raise RequestError(f"lists {len(segments)} segments; a label can hold {MAX_LABELS}")
    flat = _Flat(array, segments)
    labels = flat.labels(allocate(array.shape[:3], np.uint8))
    names = {number: segment.name for number, segment in enumerate(segments, 1)}
    return labels, FileLabels(names=names, layered=True, offset=offset, warnings=tuple(flat.warnings()))


@dataclass
class _Flat:
    """Layers (i, j, k, layer) that become one index map, plane by plane."""

    array: NDArray[Any]
    segments: Sequence[Segment]
    lost: Counter[tuple[int, int]] = field(default_factory=Counter)  # (number below, number above) -> voxels
    sizes: Counter[int] = field(default_factory=Counter)  # number -> voxels

    def labels(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Write the index map into `labels`, the smallest segments last."""
        self._count()
        order = sorted(range(1, len(self.segments) + 1), key=lambda number: -self.sizes[number])
        for k in range(labels.shape[2]):
            plane = np.zeros(labels.shape[:2], np.uint8, order="F")
            layers = {n: self.array[:, :, k, n] for n in {segment.layer for segment in self.segments}}
            shown = {n: values for n, values in layers.items() if values.any()}
            for number in order:
                segment = self.segments[number - 1]
                if segment.layer not in shown:
                    continue
                inside = shown[segment.layer] == segment.value
                for below, voxels in enumerate(np.bincount(plane[inside])):
                    if below and voxels and below != number:
                        self.lost[below, number] += int(voxels)
                plane[inside] = number
            labels[:, :, k] = plane
        return labels

    def warnings(self) -> list[str]:
        """A sentence for each two segments that overlap; those of one structure do not matter."""
        sentences = []
        for (below, above), voxels in sorted(self.lost.items()):
            names = [self.segments[number - 1].name for number in (below, above)]
            if names[0] != names[1]:
                sentences.append(
                    f"{names[0]!r} and {names[1]!r} overlap in {voxels} of the {self.sizes[below]} voxels of "
                    f"{names[0]!r}; a label holds one structure for each voxel, there {names[1]!r}, the smaller one"
                )
        return sentences

    def _count(self) -> None:
        layers = self.array.shape[3]
        numbers: dict[tuple[int, int], int] = {}
        for number, segment in enumerate(self.segments, 1):
            if segment.layer >= layers:
                raise RequestError(f"lists {segment.name!r} in layer {segment.layer}, but has {layers} layers from 0")
            if numbers.setdefault((segment.layer, segment.value), number) != number:
                other = self.segments[numbers[segment.layer, segment.value] - 1].name
                raise RequestError(f"lists {other!r} and {segment.name!r} with the same value; expected different ones")
        for layer in range(layers):
            for k in range(self.array.shape[2]):
                values, counts = _values(self.array[:, :, k, layer])
                for value, count in zip(values, counts, strict=True):
                    if (layer, value) not in numbers:
                        raise RequestError(f"holds the value {value} in layer {layer}, which is of no segment")
                    self.sizes[numbers[layer, value]] += count


def _values(plane: NDArray[Any]) -> tuple[list[int], list[int]]:
    """The values of a plane other than 0, and how often each is there."""
    if not plane.any():
        return [], []
    values, counts = np.unique(plane, return_counts=True)
    if plane.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise RequestError("holds values that are no integers; expected the values of segments")
    pairs = [(int(value), int(count)) for value, count in zip(values, counts, strict=True) if value]
    return [value for value, _ in pairs], [count for _, count in pairs]


def _number(header: Mapping[str, Any], key: str, default: int) -> int:
    text = str(header.get(key, default)).strip()
    if not text.isdecimal():
        raise RequestError(f"says {key} is {text!r}; expected a number")
    return int(text)


def _offset(header: Mapping[str, Any]) -> tuple[int, int, int]:
    """Where the first voxel is in the image that was segmented; 0 if the file does not say it."""
    try:
        i, j, k = (int(part) for part in str(header.get(OFFSET, "0 0 0")).split())
    except ValueError:
        raise RequestError(f"says {OFFSET} is {header.get(OFFSET)!r}; expected three numbers") from None
    return i, j, k
