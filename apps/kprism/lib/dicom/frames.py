# SPDX-License-Identifier: Apache-2.0
"""The frames of DICOM images, single-frame or multi-frame, with their positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

MAX_FRAMES = 1 << 17
"""More frames than any image has; a number above it is an error of its header."""


@dataclass(frozen=True)
class Frame:
    """One plane: its SOP instance, its frame number from 1, and the position of its first pixel (LPS, mm) if known."""

    instance: str
    number: int
    position: tuple[float, float, float] | None = None
    orientation: tuple[float, ...] | None = None

    @property
    def is_placed(self) -> bool:
        """Whether its place in the patient is known."""
        return self.position is not None and self.orientation is not None


def functional(header: Dataset, frame: int, group: str) -> Dataset | None:
    """A functional group of a multi-frame image: that of the frame, else the shared one."""
    return next(iter(functional_items(header, frame, group)), None)


def functional_items(header: Dataset, frame: int, group: str) -> list[Dataset]:
    """All items of a functional group, of which most have one."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [per_frame[frame]] if frame < len(per_frame) else []
    groups += list(header.get("SharedFunctionalGroupsSequence") or [])
    return next((list(item[group].value) for item in groups if item.get(group)), [])


def frames_of(header: Dataset) -> list[Frame]:
    """The frames of an image with their positions."""
    uid = str(header.SOPInstanceUID)
    frames = []
    for number in range(frame_count(header)):
        place = functional(header, number, "PlanePositionSequence") or header
        turn = functional(header, number, "PlaneOrientationSequence") or header
        frames.append(Frame(uid, number + 1, numbers(place, "ImagePositionPatient", 3), orientation(turn)))
    return frames


def frame_count(header: Dataset) -> int:
    """The number of frames of an image."""
    return whole_number(header, "NumberOfFrames") or 1


def numbers(dataset: Dataset, name: str, count: int) -> Any:
    """An attribute of `count` numbers; None if it is missing or anything else."""
    try:
        values = tuple(float(value) for value in dataset.get(name))
    except (TypeError, ValueError, OverflowError):  # empty, one value, or no number
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def number(dataset: Dataset, name: str) -> float | None:
    """An attribute that is one number; None if it is missing or anything else."""
    try:
        value = float(dataset.get(name))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def whole_number(dataset: Dataset, name: str) -> int | None:
    """An attribute that is one whole number; None if it is missing or anything else."""
    value = number(dataset, name)
    return int(value) if value is not None and value.is_integer() else None


def orientation(dataset: Dataset) -> tuple[float, ...] | None:
    """The directions of rows and of columns; None if they are not at right angles, or have no length."""
    cosines: tuple[float, ...] | None = numbers(dataset, "ImageOrientationPatient", 6)
    if cosines is None:
        return None
    along, down = np.array(cosines[:3]), np.array(cosines[3:])
    is_direction = np.abs(np.linalg.norm([along, down], axis=1) - 1).max() < 0.1 and abs(along @ down) < 0.1
    return cosines if is_direction else None
