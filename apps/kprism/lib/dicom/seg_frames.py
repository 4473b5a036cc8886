# SPDX-License-Identifier: Apache-2.0
"""The frames of a DICOM Segmentation: what each one shows, where it lies, and its mask, one at a time.

Bits take eight times their memory when they are unpacked, so a mask is unpacked when it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.frames import Frame, functional, functional_items, numbers, orientation
from lib.dicom.pixels import stored_values
from lib.imaging.label_maps import values_in_plane


@dataclass(frozen=True)
class Plane:
    """One segment in one frame (counted from 0): the images that the frame names, and its position."""

    number: int
    segment: int
    sources: tuple[tuple[str, int], ...]
    frame: Frame


class SegFrames:
    """The frames of `segmentation`; ValueError, AttributeError or NotImplementedError if they cannot be decoded."""

    def __init__(self, segmentation: Dataset) -> None:
        self._segmentation = segmentation
        kind = str(segmentation.get("SegmentationType"))
        self._is_label_map, self.is_fractional = kind == "LABELMAP", kind == "FRACTIONAL"
        self.unnamed: set[int] = set()
        """Segments that frames show, or values of a label map, that were not wanted; 0 is no segment."""
        maximum = float(segmentation.get("MaximumFractionalValue") or 255) if self.is_fractional else 1.0
        self._threshold = maximum / 2
        self._pixels = _Bits(segmentation) if _Bits.holds(segmentation) else _decoded(segmentation)
        self.shape: tuple[int, int] = (self._pixels.shape[1], self._pixels.shape[2])

    def planes(self, wanted: Collection[int]) -> Iterator[Plane]:
        """The segments `wanted` in each frame, frame by frame."""
        for number in range(self._pixels.shape[0]):
            present = self._segments(number)
            segments = [segment for segment in present if segment in wanted]
            self.unnamed.update(set(present).difference(wanted))
            if segments:
                sources, frame = _sources(self._segmentation, number), _frame(self._segmentation, number)
                yield from (Plane(number, segment, sources, frame) for segment in segments)

    @cached_property
    def positions(self) -> NDArray[np.float64]:
        """Where (n, 3) (LPS, mm) the first pixels of all frames are, of any segment, as far as they say it."""
        frames = (_frame(self._segmentation, number) for number in range(self._pixels.shape[0]))
        return np.array([frame.position for frame in frames if frame.position is not None], np.float64).reshape(-1, 3)

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
        frames = _frame_count(segmentation)
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
        return is_plain and int(segmentation.BitsAllocated) == 1 and int(segmentation.get("SamplesPerPixel") or 1) == 1

    def __getitem__(self, number: int) -> NDArray[np.bool_]:
        """A frame (row, column)."""
        count = self.shape[1] * self.shape[2]
        start, skipped = divmod(number * count, 8)
        content = self._bytes[start : start + (skipped + count + 7) // 8]
        bits = np.unpackbits(content, bitorder="little")[skipped : skipped + count]
        return bits.reshape(self.shape[1:]).view(bool)


def _frame_count(segmentation: Dataset) -> int:
    """The number of frames; that of their functional groups if it is not given."""
    groups = segmentation.get("PerFrameFunctionalGroupsSequence") or []
    return int(segmentation.get("NumberOfFrames") or len(groups) or 1)


def _decoded(segmentation: Dataset) -> NDArray[Any]:
    """Pixels of any other kind (frame, row, column)."""
    if segmentation.file_meta.TransferSyntaxUID.is_encapsulated and int(segmentation.BitsAllocated) > 1:
        return stored_values(segmentation, str(segmentation.get("SOPInstanceUID")))
    pixels = np.asarray(segmentation.pixel_array)
    return pixels[None] if pixels.ndim == 2 else pixels


def _sources(segmentation: Dataset, number: int) -> tuple[tuple[str, int], ...]:
    """The images that a frame is derived from; there are several if two series were looked at."""
    sources = []
    for derivation in functional_items(segmentation, number, "DerivationImageSequence"):
        for item in derivation.get("SourceImageSequence") or []:
            frame = item.get("ReferencedFrameNumber")
            first = frame[0] if isinstance(frame, list) or hasattr(frame, "__iter__") else frame
            sources.append((str(item.get("ReferencedSOPInstanceUID")), int(first or 1)))
    return tuple(sources)


def _frame(segmentation: Dataset, number: int) -> Frame:
    position = functional(segmentation, number, "PlanePositionSequence")
    turn = functional(segmentation, number, "PlaneOrientationSequence")
    return Frame(
        "",
        number + 1,
        numbers(position, "ImagePositionPatient", 3) if position else None,
        orientation(turn) if turn else None,
    )
