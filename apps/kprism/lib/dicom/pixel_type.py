# SPDX-License-Identifier: Apache-2.0
"""How the voxels of a series are stored, known from its headers before any pixel has arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.errors import RequestError

CT_TYPE = np.dtype(np.int16)
INTEGERS = tuple(np.dtype(name) for name in ("u1", "i1", "u2", "i2", "i4"))
"""Types of voxels, the smallest first."""


class TooWideError(RequestError):
    """A value does not fit into the type that the headers let expect."""


class PixelType(NamedTuple):
    """The type of a value, and 1 value a voxel, or 3 for colour (red, green, blue)."""

    dtype: np.dtype[Any]
    channels: int = 1

    def convert(self, planes: NDArray[Any], instance: str) -> NDArray[Any]:
        """Decoded planes in this type; TooWideError names the image and a value that does not fit.

        Colour of 16 bits is reduced to the upper eight, as NIfTI and viewers have it.
        """
        if planes.dtype == self.dtype:
            return planes
        if self.channels == 3 and planes.dtype == np.uint16:
            return (planes >> 8).astype(np.uint8)
        if self.dtype.kind != "f" and planes.size:
            limits = np.iinfo(self.dtype)
            for value in (planes.min(), planes.max()):
                if not limits.min <= value <= limits.max:
                    raise TooWideError(
                        f"image {instance} holds the value {value:g}, which does not fit into the type of the series' "
                        f"voxels ({self.dtype}, from its headers)"
                    )
        return planes.astype(self.dtype)


class _Range(NamedTuple):
    low: float
    high: float
    is_whole: bool


def pixel_type(headers: Sequence[Dataset], *, wide: bool = False) -> PixelType:
    """The type of a series' voxels, the same whichever image arrives first; `headers` are those of its images.

    Colour is uint8. Grey values after rescaling get the smallest integer type that holds every value that the headers
    allow, float32 if a slope or an intercept is not a whole number or no type is large enough. CT of more than 8 bits
    is int16, as Hounsfield units fit into that in practice; `wide` is for a series where they do not. RequestError if
    some images are grey and others are in colour.
    """
    channels = {channels_of(header) for header in headers}
    if len(channels) > 1:
        uid = headers[0].get("SeriesInstanceUID")
        raise RequestError(f"series {uid} has grey and coloured images; it cannot be a volume")
    if channels == {3}:
        return PixelType(np.dtype(np.uint8), 3)
    ranges = {found for header in headers for found in _ranges(header)}
    if not all(found.is_whole for found in ranges):
        return PixelType(np.dtype(np.float32))
    low, high = min(found.low for found in ranges), max(found.high for found in ranges)
    fitting = [kind for kind in INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    is_ct = all(str(header.get("Modality")) == "CT" for header in headers)
    if is_ct and not wide and (not fitting or fitting[0].itemsize > 1):
        return PixelType(CT_TYPE)
    return PixelType(fitting[0] if fitting else np.dtype(np.float32))


def channels_of(header: Dataset) -> int:
    """3 for colour, also by a palette."""
    palette = str(header.get("PhotometricInterpretation")) == "PALETTE COLOR"
    return 3 if palette or int(header.get("SamplesPerPixel") or 1) == 3 else 1


def _ranges(header: Dataset) -> Iterator[_Range]:
    """The values that the images of a header can have after rescaling, for each slope and intercept in it."""
    allocated = int(header.get("BitsAllocated") or 16)
    stored = min(int(header.get("BitsStored") or allocated), allocated)
    stored = max(stored, 9) if allocated > 8 else stored  # values of two bytes are not taken for pictures of 8 bits
    signed = int(header.get("PixelRepresentation") or 0) == 1
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    for slope, intercept in set(_rescales(header)):
        ends = sorted((low * slope + intercept, high * slope + intercept))
        yield _Range(ends[0], ends[1], slope.is_integer() and intercept.is_integer())


def _rescales(header: Dataset) -> Iterator[tuple[float, float]]:
    groups: list[Any] = list(header.get("SharedFunctionalGroupsSequence") or [])
    groups += list(header.get("PerFrameFunctionalGroupsSequence") or [])
    transforms = [item for group in groups for item in group.get("PixelValueTransformationSequence") or []]
    yield from (_rescale(source) for source in _or_one(transforms, header))


def _or_one(found: Iterable[Dataset], header: Dataset) -> list[Dataset]:
    return [*found, header] if "RescaleSlope" in header else (list(found) or [header])


def _rescale(source: Dataset) -> tuple[float, float]:
    """(slope, intercept); a slope of 0, which would make every value the same, counts as none."""
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    numbers = float(1 if slope in (None, "") else slope), float(0 if intercept in (None, "") else intercept)
    return numbers if numbers[0] else (1.0, 0.0)
