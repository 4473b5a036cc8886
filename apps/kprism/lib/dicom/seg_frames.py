# SPDX-License-Identifier: Apache-2.0
"""The frames of a DICOM Segmentation: what each one shows, where it lies, and its mask, one at a time.

Bits take eight times their memory when they are unpacked, so a mask is unpacked when it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.frames import Frame, functional, numbers
from lib.imaging.label_maps import values_in_plane


@dataclass(frozen=True)
class Plane:
    """One segment in one frame (counted from 0): the image that the frame names, and its position."""

    number: int
    segment: int
    source: tuple[str, int] | None
    frame: Frame


class SegFrames:
    """The frames of `segmentation`; ValueError, AttributeError or NotImplementedError if they cannot be decoded."""

    def __init__(self, segmentation: Dataset) -> None:
        self._segmentation = segmentation
        kind = str(segmentation.get("SegmentationType"))
        self._is_label_map, self.is_fractional = kind == "LABELMAP", kind == "FRACTIONAL"
        self.unnamed: set[int] = set()
        """Values of a label map that were not wanted, and are not its background."""
        maximum = float(segmentation.get("MaximumFractionalValue") or 255) if self.is_fractional else 1.0
        self._threshold = maximum / 2
        self._pixels = _Bits(segmentation) if _Bits.holds(segmentation) else _decoded(segmentation)
        self.shape: tuple[int, int] = (self._pixels.shape[1], self._pixels.shape[2])

    def planes(self, wanted: Collection[int]) -> Iterator[Plane]:
        """The segments `wanted` in each frame, frame by frame."""
        for number in range(self._pixels.shape[0]):
            present = self._segments(number)
            segments = [segment for segment in present if segment in wanted]
            if self._is_label_map:
                self.unnamed.update(set(present).difference(wanted))
            if segments:
                source, frame = _source(self._segmentation, number), _frame(self._segmentation, number)
                yield from (Plane(number, segment, source, frame) for segment in segments)

    def mask(self, plane: Plane) -> NDArray[np.bool_]:
        """The mask (row, column) of a plane."""
        pixels = self._pixels[plane.number]
        if pixels.dtype == bool:
            return pixels
        mask: NDArray[np.bool_] = pixels == plane.segment if self._is_label_map else pixels > self._threshold
        return mask

    def _segments(self, number: int) -> list[int]:
        if self._is_label_map:
            return sorted(values_in_plane(self._pixels[number]))
        group = functional(self._segmentation, number, "SegmentIdentificationSequence")
        return [int(group.ReferencedSegmentNumber) if group else 1]


class _Bits:
    """Pixels of one bit each, uncompressed; frames need not begin with a byte (PS3.5, 8.1.1)."""

    def __init__(self, segmentation: Dataset) -> None:
        frames = int(segmentation.get("NumberOfFrames") or 1)
        self.shape = (frames, int(segmentation.Rows), int(segmentation.Columns))
        self._bytes = np.frombuffer(segmentation.PixelData, np.uint8)
        if self._bytes.size * 8 < np.prod(self.shape, dtype=np.int64):
            raise ValueError(
                f"the segmentation has {self._bytes.size} bytes of pixels, too few for {frames} frames of "
                f"{self.shape[2]} x {self.shape[1]} pixels"
            )

    @staticmethod
    def holds(segmentation: Dataset) -> bool:
        """Whether a segmentation is stored in this way."""
        syntax = segmentation.file_meta.TransferSyntaxUID
        is_plain = syntax.is_little_endian and not syntax.is_encapsulated
        return is_plain and int(segmentation.BitsAllocated) == 1 and int(segmentation.SamplesPerPixel) == 1

    def __getitem__(self, number: int) -> NDArray[np.bool_]:
        """A frame (row, column)."""
        count = self.shape[1] * self.shape[2]
        start, skipped = divmod(number * count, 8)
        content = self._bytes[start : start + (skipped + count + 7) // 8]
        bits = np.unpackbits(content, bitorder="little")[skipped : skipped + count]
        return bits.reshape(self.shape[1:]).view(bool)


def _decoded(segmentation: Dataset) -> NDArray[Any]:
    """Pixels of any other kind (frame, row, column)."""
    pixels = np.asarray(segmentation.pixel_array)
    return pixels[None] if pixels.ndim == 2 else pixels


def _source(segmentation: Dataset, number: int) -> tuple[str, int] | None:
    derivation = functional(segmentation, number, "DerivationImageSequence")
    for item in (derivation.get("SourceImageSequence") or []) if derivation else []:
        frame = item.get("ReferencedFrameNumber")
        first = frame[0] if isinstance(frame, list) or hasattr(frame, "__iter__") else frame
        return str(item.ReferencedSOPInstanceUID), int(first or 1)
    return None


def _frame(segmentation: Dataset, number: int) -> Frame:
    position = functional(segmentation, number, "PlanePositionSequence")
    orientation = functional(segmentation, number, "PlaneOrientationSequence")
    return Frame(
        "",
        number + 1,
        numbers(position, "ImagePositionPatient", 3) if position else None,
        numbers(orientation, "ImageOrientationPatient", 6) if orientation else None,
    )
